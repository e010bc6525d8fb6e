"""Webhook endpoints, deliveries, signatures and the SSRF-safe sender; service.webhook_dispatcher runs them."""
