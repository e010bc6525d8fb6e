"""What a model needs of a card's memory, and what a worker refuses at its start. Without torch.

`activations` has the formulas and says what they leave out: the figures are lower bounds.
"""

from __future__ import annotations

from math import prod

from service.catalog.activations import TRANSFORMERS, CogVideoXFootprint, Footprint, UNetFootprint, WanFootprint
from service.catalog.family_components import COGVIDEOX, WAN, is_transformer
from service.catalog.memory_options import MemoryOptions
from service.catalog.model_entry import ModelEntry
from service.catalog.network_sizes import NetworkSize, sizes_of
from service.errors import ConfigurationError

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
Clip = tuple[int, int, int]  # width, height, frames
LOWEST = MemoryOptions(halves_apart=True, tiling=True)  # where the engine goes on if memory runs out
# Of diffusers' classes, where a config leaves a key out.
DEFAULTS = {
    (WAN, "transformer"): {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "ffn_dim": 13824,
        "num_layers": 40,
        "patch_size": [1, 2, 2],
    },
    (WAN, "vae"): {"base_dim": 96},
    (COGVIDEOX, "transformer"): {
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "num_layers": 30,
        "patch_size": 2,
    },
    (COGVIDEOX, "vae"): {"block_out_channels": [128, 256, 256, 512]},
}


def footprint_of(entry: ModelEntry) -> Footprint | None:
    """None where a network's files are not on this machine, or cannot be read, and it is no released one."""
    sizes = sizes_of(entry)
    if sizes is None:
        return None
    vae_itemsize = _vae_itemsize(entry, sizes["vae"])
    weights = {
        name: size.numbers * (vae_itemsize if name == "vae" else ITEMSIZE[entry.dtype]) for name, size in sizes.items()
    }
    if entry.quantise is not None:
        weights |= {name: sizes[name].numbers for name in TRANSFORMERS if name in sizes}  # a byte each, and some more
    configs = {name: DEFAULTS.get((entry.family, name), {}) | size.config for name, size in sizes.items()}
    if is_transformer(entry.family):
        kind = WanFootprint if entry.family == WAN else CogVideoXFootprint
        return kind(weights, configs["transformer"], configs["vae"], vae_itemsize)
    return UNetFootprint(weights, entry.family, configs, ITEMSIZE[entry.dtype], vae_itemsize)


def default_need(entry: ModelEntry) -> int | None:
    """Bytes of a card for the entry's default clip, with its settings; None if they are not known."""
    found = footprint_of(entry)
    return None if found is None else _needed(found, entry, _default_clip(entry), entry.memory)


def check_fits(entry: ModelEntry, available_bytes: int, *, are_all: bool = False) -> None:
    """Raises ConfigurationError if the default clip does not fit, even in low-memory mode; names what would.

    Args:
        available_bytes: that are free on the card, or all that it has.
        are_all: which of the two.
    """
    found = footprint_of(entry)
    if found is None:
        return
    low, clip = _lowest(entry), _default_clip(entry)
    if (least := _least(found, entry, clip, low)) <= available_bytes:
        return
    width, height, frames = clip
    available = "the card has {}" if are_all else "{} are free: end other programs on the card"
    raise ConfigurationError(
        f"model {entry.id} needs {_gb(least)} of the card for its default clip, {width}x{height} and {frames} frames, "
        f"even in low-memory mode; {available.format(_gb(available_bytes))}. {_ways_out(found, entry, available_bytes)}"
    )


def _ways_out(found: Footprint, entry: ModelEntry, available_bytes: int) -> str:
    width, height, frames = _default_clip(entry)
    small = min((_sides(size) for size in entry.sizes), key=prod)
    shortest = int(entry.num_frames.min)
    as_is = _lowest(entry)
    tries = {
        f"{small[0]}x{small[1]} as the first size": (*small, frames, as_is),
        f"num_frames.default = {shortest}": (width, height, shortest, as_is),
    }
    smallest = "the smallest size and the fewest frames together"
    least = *small, shortest, as_is
    if is_transformer(entry.family):
        offload = as_is.model_copy(update={"group_offload": True})
        tries = {"memory = { group_offload = true }": (width, height, frames, offload), **tries}
        smallest, least = f"group_offload, {smallest}", (*small, shortest, offload)
    tries[smallest] = least
    needs = {what: _least(found, entry, how[:3], how[3]) for what, how in tries.items()}
    fitting = [f"{what} ({_gb(need)})" for what, need in needs.items() if need <= available_bytes]
    if fitting:
        return f"What fits: {'; '.join(fitting)}."
    least_of_all = _gb(needs[smallest])
    return f"No setting makes it fit: the least is {least_of_all}. Use a card with more memory, or a smaller model."


def _lowest(entry: ModelEntry) -> MemoryOptions:
    return LOWEST.model_copy(update={"group_offload": entry.memory.group_offload})


def _needed(found: Footprint, entry: ModelEntry, clip: Clip, memory: MemoryOptions) -> int:
    return found.needed(*_seen(entry, clip), memory)


def _least(found: Footprint, entry: ModelEntry, clip: Clip, memory: MemoryOptions) -> int:
    """Compiled blocks keep fewer values than the formulas count, so that what they need is left out."""
    if entry.optimise is None or not entry.optimise.compile:
        return _needed(found, entry, clip, memory)
    return found.resident(memory) + found.around(*_seen(entry, clip), memory)


def _seen(entry: ModelEntry, clip: Clip) -> Clip:
    """What the networks see of a clip."""
    width, height, frames = clip
    return width // entry.upscale, height // entry.upscale, frames


def _vae_itemsize(entry: ModelEntry, vae: NetworkSize) -> int:
    """As `worker.networks.vae_config` chooses the precision."""
    upcast = entry.dtype == "float16" and vae.config.get("force_upcast") is True and not is_transformer(entry.family)
    return ITEMSIZE[entry.vae_dtype or ("float32" if upcast else entry.dtype)]


def _default_clip(entry: ModelEntry) -> Clip:
    return *_sides(entry.sizes[0]), int(entry.num_frames.default)


def _sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
