"""What a caller can get wrong, as types; the message names what it is, its value, and the way out.

ValueError
├── BadSetting   a schedule, a plan or a denoiser cannot be made with this value
└── DoesNotFit   latents, networks, embeddings and plan are each possible, but not together
"""

from __future__ import annotations


class BadSetting(ValueError):
    """A value that a schedule, a plan or a denoiser cannot be made with."""


class DoesNotFit(ValueError):
    """Latents, networks, embeddings or plan that cannot be run together."""
