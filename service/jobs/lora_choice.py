"""LoRAs that a request chooses from those of its model, in all spellings that clients use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from service.frozen_model import FrozenModel
from service.jobs.sampler_settings import Network
from service.json_text import parse_json

NAME = r"^[A-Za-z0-9_.-]{1,64}$"
LORA_TEXT = r"^[A-Za-z0-9_.-]{1,64}(:(-?\d+(\.\d+)?)?(:(image|video))?)?$"  # NAME[:SCALE[:NETWORK]]
MAX_LORAS = 8  # of one request: each takes time to merge
MAX_SCALE = 10.0  # sliders are used up to 8; 80 is a percentage
LoraScale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]
Networks = Annotated[tuple[Network, ...], Field(min_length=1, max_length=2)]

# Names that other servers use within a LoRA: vLLM-Omni, SGLang, Novita, Runware.
ALIASES = {
    "lora_name": "name",
    "lora_nickname": "name",
    "model_name": "name",
    "lora_scale": "scale",
    "weight": "scale",
    "strength": "scale",
    "on": "networks",
}
FILES = {"path", "local_path", "lora_path", "url"}  # fields that would name a file
IGNORED = {"int_id", "lora_int_id"}  # vLLM-Omni's own number of a LoRA


class LoraUse(FrozenModel):
    """A LoRA of a generation, with the model's defaults applied."""

    name: str  #: name in the model's list of LoRAs
    scale: float  #: how strongly it counts; 0: not at all
    networks: tuple[Network, ...]  #: networks that it changes, with their text encoders


class LoraRequest(FrozenModel):
    """One of the model's LoRAs. The text `NAME`, `NAME:SCALE` or `NAME:SCALE:NETWORK` is the same."""

    name: str = Field(pattern=NAME, description="A name of `loras` in GET /v1/models")
    scale: LoraScale | None = Field(default=None, description="0: no effect; default: that of the LoRA")
    networks: Networks | None = Field(
        default=None, description="The networks that it changes, with their text encoders; default: all of the LoRA's"
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, str):
            return _of_text(given)
        return _own_names(cast(Mapping[str, Any], given)) if isinstance(given, Mapping) else given


def _of_text(text: str) -> dict[str, Any]:
    """NAME[:SCALE[:NETWORK]] as an object."""
    name, _, rest = text.strip().partition(":")
    scale, _, network = rest.partition(":")
    return {"name": name} | ({"scale": scale} if scale else {}) | ({"networks": [network]} if network else {})


def _own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the names of `LoraRequest`. Raises ValueError for a file, and for two different values."""
    found: dict[str, Any] = {}
    for field, value in given.items():
        if field in IGNORED or value is None:
            continue
        if field in FILES:
            raise ValueError(
                f"it names a file ({field}); files of a request are not loaded: name a LoRA of the model's list in "
                "GET /v1/models"
            )
        name = ALIASES.get(field, field)
        if str(found.setdefault(name, value)) != str(value):
            raise ValueError(f"{name} and {field} are the same field, but differ")
    if "networks" in found:
        found["networks"] = as_list(found["networks"])
    return found


def as_list(value: object) -> object:
    """A list as JSON, or as a form has it: JSON text, texts joined by commas, or an object with the indexes as keys.

    Raises ValueError if a text looks like JSON and is not.
    """
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return [part.strip() for part in value.split(",") if part.strip()]
        try:
            value = parse_json(value)
        except ValueError as e:
            raise ValueError(f"the text is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, object]", value)
    if all(key.isdecimal() and len(key) <= 3 for key in table):
        return [table[key] for key in sorted(table, key=int)]
    return list(table.values()) if set(table) == {""} else [table]


def unique_loras(loras: tuple[LoraRequest, ...] | None) -> tuple[LoraRequest, ...] | None:
    """Raises ValueError if a LoRA is named twice."""
    names = [lora.name for lora in loras or ()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"it names '{twice[0]}' twice; name each LoRA once")
    return loras
