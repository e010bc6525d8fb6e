"""Loaded by Schemathesis in its own environment: leaves out cases that a URL cannot express."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_query(_context: object, query: dict[str, Any] | None) -> bool:
    """Drop metadata values that are not text: every value of a URL is text, so `null` arrives as the valid "null"."""
    metadata = (query or {}).get("metadata")
    return not isinstance(metadata, dict) or all(isinstance(value, str) for value in metadata.values())
