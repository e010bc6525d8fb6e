"""What a caller can get wrong, as types; the message names what it is, its value, and the way out.

ValueError
├── InvalidSetting   a schedule, a plan or a denoiser cannot be made with this value
└── IncompatibleInputs   latents, networks, embeddings and plan are each possible, but not together
"""

from __future__ import annotations


class InvalidSetting(ValueError):
    """A value that a schedule, a plan or a denoiser cannot be made with."""


class IncompatibleInputs(ValueError):
    """Latents, networks, embeddings or plan that cannot be run together."""
