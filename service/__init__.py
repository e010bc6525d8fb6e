"""The service: job records, queue, HTTP API, storage, webhooks and command line. Never imports torch."""

__version__ = "0.2.0"
