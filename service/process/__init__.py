"""Starts and supervises processes: embedded Valkey, `ivmix up`, heartbeat files, metrics ports."""
