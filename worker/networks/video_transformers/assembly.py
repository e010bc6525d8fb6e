"""Loads or checks the components of a model with a video transformer, and fits them together."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from service.catalog.family_components import IMAGE_ENCODER, IMAGE_PROCESSOR, SECOND_EXPERT, WAN
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from worker.networks.approximate.float8 import check_float8, to_float8
from worker.networks.assembly import (
    CPU,
    IncompatibleModels,
    check_memory,
    check_multiples,
    check_present,
    load_components,
)
from worker.networks.component_files import component_folder, refused
from worker.networks.network_classes import Network
from worker.networks.optimise import BlockCompiler
from worker.networks.schedules import AnySchedule, load_schedule
from worker.networks.video_transformers.clip_vision import ClipVision
from worker.networks.video_transformers.models import NoLoras, TransformerModels
from worker.networks.video_transformers.network import VideoTransformer, cogvideox, wan
from worker.networks.video_transformers.text import T5Reader
from worker.networks.video_transformers.vae import TemporalVae

log = logging.getLogger("ivmix.child")

WAN_TOKENS = 512  # of a prompt, as the model was trained


@dataclass(frozen=True)
class TransformerAssembly:
    """The parts of a model. With `only_check`, its networks are on torch's meta device."""

    tokenizer: Any
    text_encoder: Network
    vae: Network
    transformers: tuple[Network, ...]
    schedule: AnySchedule
    vision: tuple[Any, Network] | None = None  # CLIP's image processor and encoder


def load_transformer(entry: ModelEntry, device: torch.device, dtype: torch.dtype) -> TransformerModels:
    """Raises ConfigurationError, IncompatibleModels; torch.OutOfMemoryError if other processes fill the card."""
    if entry.quantise is not None:
        check_float8(entry.id, entry.quantise, device)
    check_present(entry)
    check_memory(entry, device)
    stays = {"text_encoder", IMAGE_ENCODER}
    if entry.memory.group_offload or entry.quantise is not None:  # block by block, layer by layer
        stays |= {"transformer", SECOND_EXPERT}
    parts = fit_together(entry, load_components(entry, dtype, lambda name: CPU if name in stays else device))
    parts.vae.to(device)
    for network in parts.transformers:
        if entry.quantise is not None:
            to_float8(network, entry.quantise, device)
        place(network, device, group_offload=entry.memory.group_offload)
    is_wan = entry.family == WAN
    models = TransformerModels(
        entry=entry,
        device=device,
        dtype=dtype,
        text=T5Reader(
            parts.tokenizer,
            parts.text_encoder,
            tokens=WAN_TOKENS if is_wan else int(parts.transformers[0].config.max_text_seq_length),
            masked=is_wan,
            device=device,
            dtype=dtype,
        ),
        autoencoder=TemporalVae(parts.vae, tiling=entry.memory.tiling),
        transformers=parts.transformers,
        network=_network(entry, parts),
        video_schedule=parts.schedule,
        loras=NoLoras(entry),
        optimise=entry.optimise or Optimise(),
        vision=None if parts.vision is None else ClipVision(*parts.vision, device=device),
    )
    log.info("%s on %s: %.3g GB", entry.id, device, models.weights_bytes / 1e9)
    return models


def place(network: Network, device: torch.device, *, group_offload: bool) -> None:
    """Put a transformer on its device; with `group_offload` only the block that computes, and the next one."""
    if not group_offload:
        network.to(device)
        return
    on_gpu = device.type == "cuda"
    settings = {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": on_gpu, "non_blocking": on_gpu}
    network.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), **settings)


def fit_together(entry: ModelEntry, parts: Mapping[str, Any]) -> TransformerAssembly:
    """Combine components, loaded or only checked. Raises IncompatibleModels.

    Args:
        parts: what `load_component` returned, by component.
    """
    transformers = tuple(parts[name] for name in ("transformer", SECOND_EXPERT) if name in parts)
    if (entry.boundary_ratio is None) != (len(transformers) == 1):
        lacks = f"has {SECOND_EXPERT} without boundary_ratio" if len(transformers) > 1 else "has boundary_ratio alone"
        raise IncompatibleModels(
            f"model {entry.id} {lacks}: boundary_ratio is the noise level at which {SECOND_EXPERT} takes over (Wan 2.2 "
            "A14B text to video: 0.875, in its model_index.json)"
        )
    _check_text(entry, parts["tokenizer"], parts["text_encoder"])
    for network in transformers:
        _check_transformer(entry, network, parts["text_encoder"], TemporalVae(parts["vae"]))
    _check_sizes(entry, transformers[0], TemporalVae(parts["vae"]))
    with refused(f"model {entry.id}: the noise schedule", "take the scheduler's file of the same model"):
        schedule = load_schedule(entry)
    vision = _vision(entry, parts, transformers[0])
    return TransformerAssembly(parts["tokenizer"], parts["text_encoder"], parts["vae"], transformers, schedule, vision)


def _vision(entry: ModelEntry, parts: Mapping[str, Any], network: Network) -> tuple[Any, Network] | None:
    """CLIP, if the transformer reads it. Raises IncompatibleModels."""
    width = getattr(network.config, "image_dim", None)
    if width is None:
        return None
    if missing := [name for name in (IMAGE_PROCESSOR, IMAGE_ENCODER) if name not in parts]:
        raise IncompatibleModels(f"model {entry.id} lacks {' and '.join(missing)}, which its transformer reads")
    if (found := parts[IMAGE_ENCODER].config.hidden_size) != width:
        raise IncompatibleModels(
            f"model {entry.id}: the transformer takes image embeddings of dim {width}, its image_encoder returns "
            f"{found}; take both from one model"
        )
    return parts[IMAGE_PROCESSOR], parts[IMAGE_ENCODER]


def _network(entry: ModelEntry, parts: TransformerAssembly) -> VideoTransformer:
    first, *second = parts.transformers
    optimise = entry.optimise or Optimise()
    return VideoTransformer(
        first,
        low_noise=second[0] if second else None,
        boundary=1000 * (entry.boundary_ratio or 0.0),
        call=wan if entry.family == WAN else cogvideox,
        optimise=optimise,
        compiler=BlockCompiler.of(optimise),
    )


def _check_text(entry: ModelEntry, tokenizer: Any, encoder: Network) -> None:
    """Raises IncompatibleModels if tokenizer and encoder do not match: every prompt would turn into noise."""
    folder = component_folder(entry.all_components["tokenizer"])
    if len(tokenizer) > encoder.config.vocab_size:  # encoders have some rows more than there are words
        raise IncompatibleModels(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}; "
            "use the tokenizer that the encoder was trained with"
        )


def _check_transformer(entry: ModelEntry, network: Network, encoder: Network, vae: TemporalVae) -> None:
    config = network.config
    if getattr(config, "patch_size_t", None) is not None:
        raise IncompatibleModels(
            f"model {entry.id}: patch_size_t={config.patch_size_t}: CogVideoX 1.5 pads its clips, which is not "
            "done here yet; use CogVideoX 1.0"
        )
    by_channels = entry.image_conditioning == "channels"
    given = vae.frames + vae.channels if by_channels else 0
    if not by_channels and config.in_channels == 2 * vae.channels + vae.frames:
        raise IncompatibleModels(
            f"model {entry.id}: the transformer takes {config.in_channels} channels, as image-to-video models do; add "
            'image_conditioning = "channels" to the entry'
        )
    if (config.in_channels, config.out_channels) != (vae.channels + given, vae.channels):
        raise IncompatibleModels(
            f"model {entry.id}: the transformer takes {config.in_channels} latent channels and returns "
            f"{config.out_channels}, the autoencoder has {vae.channels}; both must share one latent space"
        )
    width = getattr(config, "text_dim", None) or config.text_embed_dim
    if width != encoder.config.d_model:
        raise IncompatibleModels(
            f"model {entry.id}: the transformer takes embeddings of dim {width}, its text encoder returns "
            f"{encoder.config.d_model}; take both from one model"
        )


def _check_sizes(entry: ModelEntry, network: Network, vae: TemporalVae) -> None:
    """Raises IncompatibleModels if a size of the entry is no whole number of the transformer's tokens."""
    patch = network.config.patch_size
    side = patch if isinstance(patch, int) else patch[-1]
    check_multiples(entry, entry.upscale * vae.pixels * side, f"one token of the transformer ({vae.pixels} x {side})")
