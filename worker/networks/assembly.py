"""Loads or checks all components of a model and fits them together: the part that `load` and `verify` share."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch

from sampler import NoiseSchedule
from service.catalog.family_components import SDXL, SDXL_TEXT, SPARSE_CONTROL, TEXT, has_motion_adapter
from service.catalog.footprint import check_fits
from service.catalog.model_entry import ModelEntry
from service.catalog.text_layers import MEANING
from service.errors import ConfigurationError
from worker.networks.component_files import PUT_THERE, component_folder, refused, unreadable
from worker.networks.component_loader import load_component
from worker.networks.frame_limits import frames_mismatch, most_frames
from worker.networks.lora import adapt_text_encoders, fuse_unet_loras
from worker.networks.network_classes import Network, errors_only
from worker.networks.schedules import load_schedules
from worker.networks.selectable_loras import check_selectable_loras
from worker.networks.sparse_control_checks import control_mismatch
from worker.networks.text_encoder import AnyTextEncoder, PairedTextEncoder, TextEncoder, text_encoder_of

# after network_classes, which switches the hub client offline
from diffusers import UNetMotionModel  # isort: skip
from diffusers.models.modeling_utils import no_init_weights  # isort: skip


CPU = torch.device("cpu")
MAX_LOADERS = 4  # components that are loaded at a time: they wait for the disk, are hashed, and change their dtype


class IncompatibleModels(ConfigurationError):
    """Image model, video model, autoencoder and text encoders that cannot work together."""


@dataclass(frozen=True)
class Assembly:
    """The parts of a model. With `only_check`, its networks are on torch's meta device."""

    image_text_encoder: AnyTextEncoder
    video_text_encoder: AnyTextEncoder
    vae: Network
    image_unet: Network
    video_unet: Network
    image_schedule: NoiseSchedule
    video_schedule: NoiseSchedule
    sparse_control: Network | None = None


def check_files(entry: ModelEntry) -> None:
    """Raises ConfigurationError if a component is missing, or a file differs from its known SHA-256."""
    check_present(entry)
    for component in entry.all_components.values():
        component.verify()


def load_components(entry: ModelEntry, dtype: torch.dtype, device_of: Callable[[str], torch.device]) -> dict[str, Any]:
    """All components by name, several at a time. Each is compared with its known SHA-256 right before it is read, so
    that its files come from the disk once. Raises as `check_files` and `load_component`, for the first in their order.

    Args:
        device_of: where the network of this name goes.
    """
    check_present(entry)

    def load(name: str) -> Any:
        entry.all_components[name].verify()
        return load_component(entry, name, dtype, device_of(name))

    with ThreadPoolExecutor(min(MAX_LOADERS, os.cpu_count() or 1), "load") as pool:
        return dict(zip(entry.all_components, pool.map(load, entry.all_components), strict=True))


def check_present(entry: ModelEntry) -> None:
    """Raises ConfigurationError if a component is missing."""
    components = entry.all_components
    if missing := entry.missing:
        where = f"model folder {entry.path} lacks" if entry.path else f"model {entry.id} lacks"
        first = components[missing[0]]
        way_out = f"`ivmix models fetch {entry.id}` downloads them"
        if first.source.repo is None and first.path is not None:
            way_out = unreadable(first.path, PUT_THERE) or f"{first.path} is incomplete"
        raise ConfigurationError(f"{where} {', '.join(missing)}: {way_out}")


def check_memory(entry: ModelEntry, device: torch.device) -> None:
    """Before anything is read: a model that the card could never hold, even in low-memory mode, is a fault of the entry
    (ConfigurationError), a card that is full now may be free soon (torch.OutOfMemoryError)."""
    if device.type != "cuda":
        return
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    check_fits(entry, total_bytes, are_all=True)
    try:
        check_fits(entry, free_bytes)
    except ConfigurationError as e:
        raise torch.OutOfMemoryError(e.message) from e


def assemble(entry: ModelEntry, dtype: torch.dtype, device: torch.device | None = None) -> Assembly:
    """Load all components, to `device` (None: the CPU) if the entry has nothing that is merged into them: that is done
    on the CPU, so that its rounding, which fingerprints of checkpoints depend on, is the same on all machines.

    Raises ConfigurationError; also as `check_memory`, where there is a device.
    """
    if device is not None:
        check_present(entry)
        check_memory(entry, device)
    is_merged = entry.all_loras or entry.textual_inversions
    place = CPU if device is None or is_merged else device
    return fit_together(entry, load_components(entry, dtype, lambda _name: place))


def fit_together(entry: ModelEntry, parts: Mapping[str, Any]) -> Assembly:
    """Combine components, loaded or only checked. Raises IncompatibleModels, or ConfigurationError of the LoRA.

    Args:
        parts: what `load_component` returned, by component.
    """
    image_unet, video_unet = _unets(entry, parts)
    video_text = _text_encoder(entry, parts, "")
    own = {f"image_{name}" for name in (SDXL_TEXT if entry.family == SDXL else TEXT)}
    if (missing := sorted(own - set(parts))) and len(missing) < len(own):
        raise IncompatibleModels(
            f"model {entry.id} has {min(own & set(parts))} without {', '.join(missing)}; name all of them or none"
        )
    image_text = video_text if missing else _text_encoder(entry, parts, "image_")
    image_text, video_text = adapt_text_encoders(entry, image_text, video_text)
    image_text = check_selectable_loras(entry, (image_unet, video_unet), (image_text, video_text))
    _check_compatibility(entry, parts["vae"], (image_unet, image_text), (video_unet, video_text))
    _check_clip_skip(entry, image_text, video_text)
    check_sizes(entry, parts["vae"])
    control = parts.get(SPARSE_CONTROL)
    if control is not None and (why := control_mismatch(entry, control, video_unet, parts["vae"])):
        raise IncompatibleModels(why)
    with refused(f"model {entry.id}: the noise schedule", "take the scheduler's file of the same model"):
        image_schedule, video_schedule = load_schedules(entry)
    return Assembly(
        image_text_encoder=image_text,
        video_text_encoder=video_text,
        vae=parts["vae"],
        image_unet=image_unet,
        video_unet=video_unet,
        image_schedule=image_schedule,
        video_schedule=video_schedule,
        sparse_control=control,
    )


def pixels_per_latent(entry: ModelEntry, vae: Network) -> int:
    """Picture pixels per latent pixel along one side, with the entry's `upscale`."""
    return entry.upscale * 2 ** (len(vae.config.block_out_channels) - 1)


def check_sizes(entry: ModelEntry, vae: Network) -> None:
    """Raises IncompatibleModels if videos would come out smaller than a size of the entry.

    The UNets themselves take latents of any size: they upsample to the size that they downsampled from.
    """
    step = pixels_per_latent(entry, vae)
    check_multiples(entry, step, f"one latent ({step // entry.upscale} of the autoencoder, upscale {entry.upscale})")


def check_multiples(entry: ModelEntry, step: int, pixels_of: str) -> None:
    """Raises IncompatibleModels naming a size whose sides are no multiples of `step`, and the nearest that are."""
    for size in entry.sizes:
        sides = [int(side) for side in size.split("x")]
        if any(side % step for side in sides):
            lower, higher = ("x".join(str(max(side // step + up, 1) * step) for side in sides) for up in (0, 1))
            near = " or ".join(dict.fromkeys((lower, higher)))
            raise IncompatibleModels(
                f"model {entry.id}: sizes has {size}, but width and height must be multiples of {step}, the pixels of "
                f"{pixels_of}; write {near}"
            )


def _unets(entry: ModelEntry, parts: Mapping[str, Any]) -> tuple[Network, Network]:
    """(image UNet, video UNet)."""
    base, video = None, parts["unet"]
    if has_motion_adapter(entry.family):
        base, video = _with_motion(video, parts["motion_adapter"], entry)
    image = parts.get("image_unet", base)
    fuse_unet_loras(entry, image, video)
    return image, video


def _with_motion(base: Network, adapter: Network, entry: ModelEntry) -> tuple[Network, Network]:
    """(base, video model with motion modules), with the base's weights in memory once."""
    folder = component_folder(entry.all_components["motion_adapter"])
    if (longest := most_frames(adapter)) and (why := frames_mismatch(entry, "the motion adapter", longest)):
        raise IncompatibleModels(why)
    way_out = "use an adapter that was made for this UNet (Stable Diffusion 1.5: v1-5-2, v1-5-3; SDXL: sdxl-beta)"
    # diffusers suggests a setting of from_pretrained, which does not make a motion UNet
    with (
        errors_only("diffusers"),
        refused(f"model {entry.id}: the motion adapter {folder}", way_out),
        torch.device("meta"),
        no_init_weights(),
    ):
        video = cast("Any", UNetMotionModel.from_unet2d(base, adapter, load_weights=False))
        weights = adapter.state_dict(keep_vars=True) | base.state_dict(keep_vars=True)
        lacking = video.load_state_dict(weights, strict=False, assign=True).missing_keys
        if lacking:
            raise ValueError(f"it has no weights for {', '.join(lacking[:3])}")
    video.eval().requires_grad_(False)
    return base, video


def _text_encoder(entry: ModelEntry, parts: Mapping[str, Any], prefix: str) -> AnyTextEncoder:
    """Of the video model, or with `prefix` "image_" of the image model. Raises IncompatibleModels."""
    ends = ("", "_2") if entry.family == SDXL else ("",)
    return text_encoder_of({f"text_encoder{end}": _one_text_encoder(entry, parts, prefix, end) for end in ends})


def _one_text_encoder(entry: ModelEntry, parts: Mapping[str, Any], prefix: str, end: str) -> TextEncoder:
    """Raises IncompatibleModels if tokenizer and encoder do not match: every prompt would turn into noise."""
    folder = component_folder(entry.all_components[f"{prefix}tokenizer{end}"])
    tokenizer, encoder = parts[f"{prefix}tokenizer{end}"], parts[f"{prefix}text_encoder{end}"]
    if len(tokenizer) != encoder.config.vocab_size:
        raise IncompatibleModels(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}; "
            "use the tokenizer that the encoder was trained with"
        )
    text_encoder = TextEncoder(tokenizer, encoder)
    with refused(folder, "use the tokenizer that the encoder was trained with"):
        text_encoder.token_ids(["a video"])
    return text_encoder


def _check_clip_skip(entry: ModelEntry, *encoders: AnyTextEncoder) -> None:
    if entry.clip_skip > (most := min(encoder.most_clip_skip for encoder in encoders)):
        raise IncompatibleModels(
            f"model {entry.id}: clip_skip={entry.clip_skip}, but its text encoders have layers for {most}; {MEANING}"
        )


def _check_compatibility(
    entry: ModelEntry, vae: Network, image: tuple[Network, AnyTextEncoder], video: tuple[Network, AnyTextEncoder]
) -> None:
    channels = int(vae.config.latent_channels)
    for name, (unet, encoder) in {"image model": image, "video model": video}.items():
        config = unet.config
        if (config.in_channels, config.out_channels) != (channels, channels):
            raise IncompatibleModels(
                f"model {entry.id}: the {name} takes {config.in_channels} latent channels and returns "
                f"{config.out_channels}, the autoencoder has {channels}; all three must share one latent space"
            )
        if config.cross_attention_dim != encoder.dim:
            raise IncompatibleModels(
                f"model {entry.id}: the {name} takes embeddings of dim {config.cross_attention_dim}, its text encoder "
                f"returns {encoder.dim}; name a separate tokenizer and text encoder (image_tokenizer, "
                "image_text_encoder for the image model)"
            )
        if isinstance(encoder, PairedTextEncoder):
            wanted, sizes = config.projection_class_embeddings_input_dim, 6 * config.addition_time_embed_dim
            if wanted != encoder.pooled_dim + sizes:
                raise IncompatibleModels(
                    f"model {entry.id}: the {name} takes {wanted} numbers next to the text, its text_encoder_2 returns "
                    f"{encoder.pooled_dim}, and the sizes make {sizes}; take both from one model, which is no refiner"
                )
