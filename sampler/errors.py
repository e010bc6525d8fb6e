"""The errors a caller can cause. Each message names the parameter, its value and the way out."""

from __future__ import annotations


class InvalidSetting(ValueError):
    """A schedule, plan or denoiser cannot be made with this value."""


class IncompatibleInputs(ValueError):
    """Latents, networks, embeddings and plan are each valid, but cannot be run together."""
