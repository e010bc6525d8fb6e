"""Seconds of a switch of LoRAs: UNets of Stable Diffusion 1.5's size and AnimateDiff's motion modules.

`python -m benchmarks.lora_switch`. The image model is the base of the video model, with one copy of the weights. Takes
10 GB of memory.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.modeling_utils import no_init_weights
from safetensors.torch import save_file
from torch import nn

from service.catalog.selectable_loras import SelectableLora
from service.catalog.weight_files import Component, Source
from service.jobs.lora_choice import LoraUse
from worker.networks.lora_switch import LoraSwitch

NETWORKS: dict[str, tuple[Any, ...]] = {"style": ("image", "video"), "large": ("image", "video"), "zoom": ("video",)}


def unets() -> tuple[Any, Any]:
    """(image UNet, video UNet)."""
    with torch.device("meta"):
        base = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        adapter = MotionAdapter()
    for network in (base, adapter):
        network.to_empty(device="cpu")
        for parameter in network.parameters():
            parameter.data.fill_(0.01)
    with no_init_weights():
        video = UNetMotionModel.from_unet2d(base, adapter)
    video.load_state_dict(base.state_dict(keep_vars=True), strict=False, assign=True)
    return base.requires_grad_(False), video.requires_grad_(False)


def lora(folder: Path, unet: Any, name: str, rank: int, has: Callable[[str], bool]) -> SelectableLora:
    """A file for all linear layers and convolutions that `has` picks, in float16."""
    weights: dict[str, torch.Tensor] = {}
    for layer, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and has(layer):
            out, *inside = module.weight.shape
            weights[f"unet.{layer}.lora_A.weight"] = 0.01 * torch.randn(rank, *inside)
            weights[f"unet.{layer}.lora_B.weight"] = 0.01 * torch.randn(out, rank, *(1,) * (len(inside) - 1))
    file = f"{name}.safetensors"
    save_file({key: value.half() for key, value in weights.items()}, folder / file)
    print(f"{name}: rank {rank}, {len(weights) // 2} layers, {(folder / file).stat().st_size / 1e6:.0f} MB")
    component = Component(name=name, source=Source(folder=folder), inside=file, root=folder)
    return SelectableLora(name=name, file=component, on=NETWORKS[name])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    image, video = unets()
    with tempfile.TemporaryDirectory() as folder:
        spatial: Callable[[str], bool] = lambda name: "attentions" in name and "motion" not in name  # noqa: E731
        loras = (
            lora(Path(folder), video, "style", 32, spatial),
            lora(Path(folder), video, "large", 128, spatial),
            lora(Path(folder), video, "zoom", 32, lambda name: "motion_modules" in name),
        )
        entry: Any = SimpleNamespace(id="benchmark", dtype="float16", selectable_loras=loras)
        encoder: Any = SimpleNamespace(parts={})
        switch = LoraSwitch(entry, (image, video), (encoder, encoder))
        for names in ("style", "", "style", "large", "style", "style zoom", "style large zoom", "", "style", ""):
            switch.use([LoraUse(name=name, scale=0.8, networks=NETWORKS[name]) for name in names.split()])


if __name__ == "__main__":
    main()
