"""What a Wan model needs of a card's memory, from the headers and configs of its files; without torch.

The formulas of activations were counted on torch's meta device (2026-11-27, diffusers 0.42.1; `benchmarks.meta_memory`,
a test holds them to it). They leave out what kernels and the allocator need besides, so they are lower bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from service.catalog.family_components import IMAGE_ENCODER, SECOND_EXPERT, WAN
from service.catalog.memory_options import MemoryOptions
from service.catalog.model_entry import ModelEntry
from service.catalog.weight_files import Component
from service.errors import ConfigurationError

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
TRANSFORMERS, HOST = ("transformer", SECOND_EXPERT), ("text_encoder", IMAGE_ENCODER)  # HOST: on the card to encode
BLOCKS_ON_CARD = 2  # with group_offload: one that computes, one on its way
TILE = 256  # pixels of a side; diffusers' default
# The autoencoder's decoder at its peak, in values per output pixel and channel of its last level.
DECODER_PEAK = 48.2
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights by component as they are on a card, and what activations depend on."""

    weights: dict[str, int]
    transformer: dict[str, Any]
    vae: dict[str, Any]
    vae_itemsize: int

    def network_bytes(self, width: int, height: int, frames: int, *, halves: int) -> int:
        """Activations of a call of the transformer for `halves` rows of guidance, besides its weights."""
        heads, head_dim = self.transformer["num_attention_heads"], self.transformer["attention_head_dim"]
        dim, side = heads * head_dim, self._pixels * self.transformer["patch_size"][-1]
        tokens = (1 + (frames - 1) // 4) * (width // side) * (height // side)
        row = max(8 * dim + 4 * self.transformer["ffn_dim"], 22 * dim)  # the feed-forward layer; norm and attention
        return tokens * (halves * row + 8 * head_dim)

    def decoder_bytes(self, width: int, height: int, frames: int, *, tiled: bool) -> int:
        """Activations of decoding, and the clip itself twice."""
        pixels = min(width, TILE) * min(height, TILE) if tiled else width * height
        channels = self.vae.get("decoder_base_dim") or self.vae["base_dim"]
        inside = DECODER_PEAK * channels * pixels / (self.vae.get("patch_size") or 1) ** 2
        return round((inside + 2 * 3 * frames * width * height) * self.vae_itemsize)

    def needed(self, width: int, height: int, frames: int, memory: MemoryOptions) -> int:
        """Bytes of a card for a clip: the most of encoding the text, a call of the transformer, and decoding."""
        networks = sum(self.weights.get(name, 0) for name in TRANSFORMERS)
        if memory.group_offload:
            networks = max(self.weights["transformer"] * BLOCKS_ON_CARD // self.transformer["num_layers"], 1)
        resident = networks + self.weights["vae"]
        text = max(self.weights.get(name, 0) for name in HOST)
        network = self.network_bytes(width, height, frames, halves=1 if memory.halves_apart else 2)
        return resident + max(text, network, self.decoder_bytes(width, height, frames, tiled=memory.tiling))

    @property
    def _pixels(self) -> int:
        return int(self.vae.get("scale_factor_spatial") or 8)


def footprint_of(entry: ModelEntry) -> Footprint | None:
    """None for other families, and where the files are not on this machine or cannot be read."""
    components = entry.all_components
    if entry.family != WAN or entry.missing:
        return None
    try:
        weights = {
            name: _weight_bytes(component, ITEMSIZE[entry.vae_dtype or entry.dtype if name == "vae" else entry.dtype])
            for name, component in components.items()
            if component.has_weights
        }
        transformer, vae = (_defaults(name) | _config(components[name]) for name in ("transformer", "vae"))
    except (OSError, ValueError, KeyError, TypeError):  # loading and `ivmix models verify` say what is wrong
        return None
    return Footprint(weights, transformer, vae, ITEMSIZE[entry.vae_dtype or entry.dtype])


def default_need(entry: ModelEntry) -> int | None:
    """Bytes of a card for the entry's default clip, with its settings; None if they are not known."""
    found = footprint_of(entry)
    return None if found is None else found.needed(*_default_clip(entry), entry.memory)


def check_fits(entry: ModelEntry, free_bytes: int) -> None:
    """Raises ConfigurationError if the default clip does not fit, even in low-memory mode; names what would.

    Args:
        free_bytes: of the card.
    """
    found = footprint_of(entry)
    if found is None:
        return
    low = MemoryOptions(halves_apart=True, tiling=True, group_offload=entry.memory.group_offload)
    clip = _default_clip(entry)
    if (least := found.needed(*clip, low)) <= free_bytes:
        return
    width, height, frames = clip
    raise ConfigurationError(
        f"model {entry.id} needs {_gb(least)} of the card for its default clip, {width}x{height} and {frames} frames, "
        f"even in low-memory mode; {_gb(free_bytes)} are free. {_ways_out(found, entry, free_bytes)}"
    )


def _ways_out(found: Footprint, entry: ModelEntry, free_bytes: int) -> str:
    offload = MemoryOptions(halves_apart=True, tiling=True, group_offload=True)
    width, height, frames = _default_clip(entry)
    small = min((_sides(size) for size in entry.sizes), key=prod)
    shortest = int(entry.num_frames.min)
    as_is = offload.model_copy(update={"group_offload": entry.memory.group_offload})
    tries = {
        "memory = { group_offload = true }": (width, height, frames, offload),
        f"{small[0]}x{small[1]} as the first size": (*small, frames, as_is),
        f"num_frames.default = {shortest}": (width, height, shortest, as_is),
        "group_offload, the smallest size and the fewest frames together": (*small, shortest, offload),
    }
    fitting = {what: need for what, how in tries.items() if (need := found.needed(*how)) <= free_bytes}
    if not fitting:
        least = found.needed(*small, shortest, offload)
        return f"No setting makes it fit: the least is {_gb(least)}. Use a card with more memory, or a smaller model."
    return "What fits: " + "; ".join(f"{what} ({_gb(need)})" for what, need in fitting.items()) + "."


def _default_clip(entry: ModelEntry) -> tuple[int, int, int]:
    return *_sides(entry.sizes[0]), int(entry.num_frames.default)


def _sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _weight_bytes(component: Component, itemsize: int) -> int:
    assert component.path is not None
    prefix = f"{component.inside}/" if component.inside else ""
    files = [file for file in component.path.glob("*.safetensors") if component.has_file(prefix + file.name)]
    return itemsize * sum(_count(file) for file in files)


def _count(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
    return sum(prod(value["shape"]) for name, value in header.items() if name != "__metadata__")


def _config(component: Component) -> dict[str, Any]:
    assert component.path is not None
    return cast("dict[str, Any]", json.loads((component.path / "config.json").read_text("utf-8")))


def _defaults(name: str) -> dict[str, Any]:
    """Of diffusers' classes, where a config leaves a key out."""
    transformer = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
    return transformer | {"patch_size": [1, 2, 2]} if name == "transformer" else {"base_dim": 96}
