"""Connects to Redis, and checks at the start of a process that the server behind IVMIX_REDIS_URL can be used."""
