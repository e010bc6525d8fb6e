"""The service: job records, queue, HTTP API, storage, webhooks and command line. Never imports torch."""
