"""The switches of an entry that choose how its networks run."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from service.frozen_model import FrozenModel

log = logging.getLogger("ivmix.models")

# Names of diffusers' attention dispatcher, of those backends that compute attention exactly. The last two need a
# package and a network that asks the dispatcher, which only Wan's does.
AttentionBackend = Literal[
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flash", "_flash_3"
]


class Optimise(FrozenModel):
    """Optimisations of the networks. Each changes results by rounding only and can be switched off per model."""

    cache_text_kv: bool = Field(default=True, description="compute cross-attention keys and values once per job")
    cache_time_embeds: bool = Field(default=True, description="compute the embedding of a timestep once")
    channels_last: bool = Field(default=False, description="store convolution weights channels-last")
    compile: bool = Field(default=False, description="torch.compile the repeated blocks; slow at first use")
    attention_backend: AttentionBackend = Field(
        default="native", description="kernel of attention, by diffusers' name; native: torch chooses"
    )
    guidance_halves: Literal["together", "apart"] = Field(
        default="together", description="the two halves of guidance in one network call, or one after the other"
    )

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

    @property
    def fingerprinted(self) -> str:
        """JSON for fingerprints of runs. Later switches are left out at their defaults, which older runs had."""
        later = {"attention_backend", "guidance_halves"}
        unchanged = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump_json(exclude=unchanged)

    def __str__(self) -> str:
        """What differs from the defaults, for people."""
        changed = self.model_dump(exclude_defaults=True)
        return ", ".join(f"{name}={json.dumps(value)}" for name, value in changed.items()) or "default"


def _auto_is_none(raw: object) -> object:
    if isinstance(raw, str):
        if raw != "auto":
            raise ValueError(f'{raw!r} must be "auto" or a table of switches, such as {{ compile = true }}')
        return None
    return raw


OptimiseOrAuto = Annotated[Optimise | None, BeforeValidator(_auto_is_none)]
"""None: "auto"."""


class Configuration(FrozenModel):
    """How the networks of a worker run."""

    source: Literal["default", "set", "tuned"] = Field(
        description="`set`: by the models file; `tuned`: the fastest that was measured on its card"
    )
    optimise: Optimise

    @classmethod
    def of(cls, optimise: Optimise | None) -> Configuration:
        """That of a models file. `auto` runs with the defaults until something has been measured."""
        return cls(source="set", optimise=optimise) if optimise else cls(source="default", optimise=Optimise())
