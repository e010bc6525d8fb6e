"""Loads the networks of one model onto a device."""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false
from __future__ import annotations

import logging

import torch

from service.catalog.family_components import is_transformer
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.catalog.registry import ModelRegistry
from service.settings import load_settings
from worker.networks import cpu_tuning
from worker.networks.assembly import Assembly, IncompatibleModels, assemble, pixels_per_latent
from worker.networks.lora_switch import LoraSwitch
from worker.networks.models import Models
from worker.networks.network_classes import Network
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache
from worker.networks.optimise.weight_memory import channels_last, shared_bytes
from worker.networks.schedules import schedule_warnings
from worker.networks.video_transformers.assembly import load_transformer
from worker.networks.video_transformers.models import TransformerModels

__all__ = ["AnyModels", "IncompatibleModels", "Models", "TransformerModels", "default_device", "load"]
AnyModels = Models | TransformerModels
log = logging.getLogger("ivmix.child")

# Largest latent pixels of a frame for `cpu_tuning.tune_network`: attention as matrix products is twice as fast at this
# size (measured 2026-11, demo pair), but many times slower at 64x64, where it also takes gigabytes.
MAX_TUNED_PIXELS = 24 * 24


def load(model: ModelEntry | str, device: torch.device | str | None = None) -> AnyModels:
    """Load a model from files on this machine; nothing is fetched.

    Args:
        model: an id in the registry (IVMIX_MODELS_FILE), or an entry of it.
        device: where the networks run; None: the GPU if there is one, else the CPU.

    Returns:
        The networks, in the entry's `dtype` and `vae_dtype` on a GPU and in float32 on a CPU: `Models` of the UNets, or
        `TransformerModels` of the families wan and cogvideox, with the same methods.

    Raises:
        ModelNotFound, ModelNotFetched: the registry has no such model, or its weights are not on this machine.
        ConfigurationError: a file is missing, unsafe, or not the expected one (SHA-256, names, shapes), or the
            default clip cannot fit the card.
        torch.OutOfMemoryError: it could, but other processes fill the card.
        IncompatibleModels: the components cannot work together.
    """
    entry = model if isinstance(model, ModelEntry) else ModelRegistry.of(load_settings()).get(model)
    device = default_device() if device is None else torch.device(device)
    dtype = getattr(torch, entry.dtype) if device.type == "cuda" else torch.float32
    if is_transformer(entry.family):
        return load_transformer(entry, device, dtype)
    models = _on_device(entry, assemble(entry, dtype, device), device, dtype)
    for warning in schedule_warnings(entry):
        log.warning(warning)
    megabytes, shared = models.weights_bytes / 1e6, shared_bytes(models.image_unet, models.video_unet) / 1e6
    log.info("%s on %s: %.0f MB, %.0f MB shared by both UNets", entry.id, device, megabytes, shared)
    return models


def _on_device(entry: ModelEntry, parts: Assembly, device: torch.device, dtype: torch.dtype) -> Models:
    for module in (*parts.video_text_encoder.networks, *parts.image_text_encoder.networks, parts.vae):
        module.to(device)
    unets = parts.image_unet, parts.video_unet, *([] if parts.sparse_control is None else [parts.sparse_control])
    for unet in unets:
        unet.to(device)
    channels_last(parts.vae)
    text_kv_cache = TextKVCache()
    image, video, *optimised_control = _optimised(entry, device, parts.vae, unets, text_kv_cache)

    def clear_caches() -> None:
        for network in (image, video):
            network.clear_caches()

    encoders = parts.image_text_encoder, parts.video_text_encoder
    loras = LoraSwitch(entry, (parts.image_unet, parts.video_unet), encoders, clear_caches)
    return Models(
        entry=entry,
        device=device,
        dtype=dtype,
        **vars(parts),
        optimised_image_unet=image,
        optimised_video_unet=video,
        text_kv_cache=text_kv_cache,
        loras=loras,
        optimise=entry.optimise or Optimise(),
        optimised_sparse_control=optimised_control[0] if optimised_control else None,
    )


def _optimised(
    entry: ModelEntry, device: torch.device, vae: Network, unets: tuple[Network, ...], cache: TextKVCache
) -> list[OptimisedNetwork]:
    sides = (map(int, size.split("x")) for size in entry.sizes)
    largest = max(width * height for width, height in sides) / pixels_per_latent(entry, vae) ** 2
    if device.type == "cpu" and largest <= MAX_TUNED_PIXELS:
        # The sampler `official` shows ModelScope's image network 64x64, whatever the size of the clip.
        for unet in unets[1:] if entry.family == "modelscope" else unets:
            cpu_tuning.tune_network(unet)
    optimise = entry.optimise or Optimise()
    compiler = BlockCompiler.of(optimise)
    return [OptimisedNetwork(unet, optimise, cache, compiler) for unet in unets]


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
