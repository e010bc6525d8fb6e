"""Which SparseCtrl networks (arXiv:2311.16933) keep a first frame of a video model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.networks.frame_limits import frames_mismatch, most_frames
from worker.networks.network_classes import Network

RGB = "use SparseCtrl RGB, such as guoyww/animatediff-sparsectrl-rgb"
ORDERS = ("rgb", "bgr")


def check_control_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigurationError if the network reads something else than the latents of a frame."""
    if not config.get("use_simplified_condition_embedding", True):
        raise ConfigurationError(
            f"{file}: use_simplified_condition_embedding=false is not supported: this SparseCtrl reads sketches, not "
            f"pictures; {RGB}"
        )
    if config.get("global_pool_conditions"):
        raise ConfigurationError(f"{file}: global_pool_conditions=true is not supported; {RGB}")
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ORDERS:
        raise ConfigurationError(
            f"{file}: controlnet_conditioning_channel_order={order!r} must be one of {', '.join(ORDERS)}; {RGB}"
        )


def control_mismatch(entry: ModelEntry, control: Network, video_unet: Network, vae: Network) -> str | None:
    """Why the network does not fit the video model, with the way out; None if it does.

    Args:
        control: diffusers' SparseControlNetModel.
        video_unet: UNetMotionModel, to whose skip connections its residuals are added.
    """
    config, channels, of_model = control.config, int(vae.config.latent_channels), f"model {entry.id}: sparse_control"
    taken = config.conditioning_channels
    if (taken, config.in_channels) != (channels, channels):
        return (
            f"{of_model} reads {taken} channels of a frame and {config.in_channels} of the clip, the autoencoder has "
            f"{channels}; {RGB}"
        )
    if config.cross_attention_dim != video_unet.config.cross_attention_dim:
        return (
            f"{of_model} reads embeddings of dim {config.cross_attention_dim}, the video model of dim "
            f"{video_unet.config.cross_attention_dim}; both must be of the same Stable Diffusion version"
        )
    if skips(control) != skips(video_unet):
        return (
            f"{of_model} has other blocks than the video model, {_shown(control)} instead of {_shown(video_unet)}; "
            "both must be of the same Stable Diffusion version"
        )
    longest = most_frames(control)
    return None if longest is None else frames_mismatch(entry, "sparse_control", longest)


def skips(network: Network) -> list[tuple[int, int]]:
    """(channels, times halved) of what each layer on the way down hands to the way up, and of the middle block."""
    found, level = [(int(network.conv_in.out_channels), 0)], 0
    for block in network.down_blocks:
        found += [(int(resnet.out_channels), level) for resnet in block.resnets]
        for downsampler in block.downsamplers or ():
            level += 1
            found.append((int(downsampler.out_channels), level))
    return [*found, (int(network.mid_block.resnets[-1].out_channels), level)]


def _shown(network: Network) -> str:
    config = network.config
    return f"{list(config.block_out_channels)} wide with layers_per_block={config.layers_per_block}"
