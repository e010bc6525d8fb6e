"""`optimise = "auto"`: measures a few exact configurations of the networks on this card and takes the fastest."""
