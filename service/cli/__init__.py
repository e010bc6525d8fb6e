"""The `ivmix` command."""
