"""The switches of an entry that choose how its networks run."""

from __future__ import annotations

import logging
from typing import Any, cast

from pydantic import Field, model_validator

from service.frozen_model import FrozenModel

log = logging.getLogger("ivmix.models")


class Optimise(FrozenModel):
    """Optimisations of the networks. Each changes results by rounding only and can be switched off per model."""

    cache_text_kv: bool = Field(default=True, description="compute cross-attention keys and values once per job")
    cache_time_embeds: bool = Field(default=True, description="compute the embedding of a timestep once")
    channels_last: bool = Field(default=False, description="store convolution weights channels-last")
    compile: bool = Field(default=False, description="torch.compile the repeated blocks; slow at first use")

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, raw: object) -> object:
        """Registry files written for version 0.1 stay valid."""
        if not isinstance(raw, dict):
            return raw
        switches = dict(cast("dict[str, Any]", raw))
        for old, new in {"text_once": "cache_text_kv", "time_table": "cache_time_embeds"}.items():
            if old in switches:
                switches.setdefault(new, switches.pop(old))
        if switches.pop("halves_once", None) is not None:
            log.warning("optimise.halves_once was removed and is ignored; delete it from the models file")
        return switches
