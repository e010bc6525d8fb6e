"""The process that delivers webhooks (`ivmix webhooks`). It needs no GPU; any number of instances may run."""
