"""LoRAs of a registry entry that requests may choose: `[[models.NAME.selectable_loras]]`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from service.catalog.adapters import Lora
from service.errors import InvalidParameter
from service.jobs.lora_choice import NAME, LoraRequest, LoraScale, LoraUse
from service.jobs.sampler_settings import Network

ROLES: tuple[Network, ...] = ("image", "video")


class SelectableLora(Lora):
    """A LoRA that requests may choose by its name. `on` are the models that it may change; all of them by default."""

    name: Annotated[str, Field(pattern=NAME)]
    scale: LoraScale = Field(default=1.0, description="default of a request's scale")
    description: str = Field(default="", max_length=1000)
    trigger_words: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=50, description="words of a prompt that the LoRA was trained with"
    )

    @property
    def networks(self) -> tuple[Network, ...]:
        return _in_order(self.on)


def _in_order(networks: Collection[Network]) -> tuple[Network, ...]:
    return tuple(network for network in ROLES if network in networks)


def _unique(loras: tuple[SelectableLora, ...]) -> tuple[SelectableLora, ...]:
    names = [lora.name for lora in loras]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two of them have the name {twice[0]}")
    return loras


SelectableLoras = Annotated[tuple[SelectableLora, ...], AfterValidator(_unique)]


def choose_loras(
    wanted: Sequence[LoraRequest] | None, offered: Sequence[SelectableLora], model: str
) -> tuple[LoraUse, ...]:
    """What a request wants, with the model's defaults. Raises InvalidParameter for what the model does not offer."""
    by_name = {lora.name: lora for lora in offered}
    chosen: list[LoraUse] = []
    for number, request in enumerate(wanted or ()):
        lora = by_name.get(request.name)
        if lora is None:
            raise InvalidParameter(f"loras.{number}.name", _unknown(request.name, list(by_name), model))
        networks: tuple[Network, ...] = request.networks or lora.networks
        if refused := [network for network in networks if network not in lora.on]:
            raise InvalidParameter(
                f"loras.{number}.networks",
                f"LoRA '{lora.name}' of model '{model}' is not for the {refused[0]} network; it is for "
                f"{' and '.join(lora.networks)}.",
            )
        scale = lora.scale if request.scale is None else request.scale
        chosen.append(LoraUse(name=lora.name, scale=scale, networks=_in_order(networks)))
    return tuple(chosen)


def _unknown(name: str, known: list[str], model: str) -> str:
    if not known:
        return f"Model '{model}' has no LoRAs to choose from; leave out 'loras'."
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known[:20])}."
    return f"Model '{model}' has no LoRA '{name}'; {hint}"
