"""Files that change a model's networks: LoRAs and textual inversions, as a registry entry lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from service.catalog.weight_files import Component
from service.frozen_model import FrozenModel

Role = Literal["image", "video"]


def _check_file(component: Component) -> Component:
    if not component.is_file:
        raise ValueError(
            f"{component.name} must name a .safetensors file, 'source/file.safetensors', not '{component.inside}'"
        )
    return component


AdapterFile = Annotated[Component, AfterValidator(_check_file)]


class Lora(FrozenModel):
    """A LoRA, LoCon, LoHa, LoKr, DoRA or motion LoRA."""

    file: AdapterFile
    scale: float = 1.0
    on: tuple[Role, ...] = Field(
        default=("image",),
        min_length=1,
        description="the models whose UNet and text encoder it changes; weights of motion modules always change video",
    )


class TextualInversion(FrozenModel):
    """A word of prompts with its learned embedding: one or several vectors."""

    file: AdapterFile
    token: str = Field(pattern=r"^\S{1,64}$")
    on: tuple[Role, ...] = Field(
        default=("image", "video"), min_length=1, description="the models whose text encoder learns the word"
    )


def without_tokens(text: str, inversions: Iterable[TextualInversion]) -> tuple[str, int]:
    """The text without the tokens of textual inversions, and how many there were. CLIP ignores their case."""
    found = 0
    for inversion in sorted(inversions, key=lambda inversion: -len(inversion.token)):
        # The further vectors of a token are words too: <x>_1, <x>_2.
        text, count = re.subn(re.escape(inversion.token) + r"(_\d+)?", " ", text, flags=re.IGNORECASE)
        found += count
    return text, found


def locate_adapters(raw: Any, locate: Callable[[str, str], Component]) -> dict[str, Any]:
    """`loras`, `selectable_loras` and `textual_inversions` of a registry entry with `file` located. Raises ValueError.

    Args:
        raw: the entry.
        locate: the component of a name and a place.
    """
    located: dict[str, Any] = {}
    for kind in {"loras", "selectable_loras", "textual_inversions"} & set(raw):
        if not isinstance(raw[kind], list) or not all(isinstance(item, dict) for item in raw[kind]):
            raise ValueError(f"{kind} must be a list of tables: [[models.NAME.{kind}]]")
        located[kind] = []
        for number, item in enumerate(raw[kind]):
            place = item.get("file")
            if not isinstance(place, str):
                raise ValueError(f"{kind}.{number} has no file; name it as 'source/file.safetensors'")
            located[kind].append({**item, "file": locate(f"{kind}.{number}", place)})
    return located
