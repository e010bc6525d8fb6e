"""The trained networks as files: from the folder of the training stages to the layout that workers read, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel

from demo import networks
from demo.fit import SEED

Network = Any  # diffusers' from_pretrained is untyped


def export(work: Path, into: Path) -> None:
    """Write float16 safetensors in the folder layout that the worker reads for every AnimateDiff model."""
    tokens = networks.tokenizer()
    tokens.save_pretrained(into / "tokenizer")
    networks.text_encoder(tokens, SEED).half().save_pretrained(into / "text_encoder")
    _save(AutoencoderKL.from_pretrained(work / "vae"), into / "vae")
    for source, target in (("image_colors_unet", "image_unet"), ("start_unet", "unet")):
        _save(UNet2DConditionModel.from_pretrained(work / source), into / target)
    _save(MotionAdapter.from_pretrained(work / "start_adapter"), into / "motion_adapter")
    networks.scheduler("v_prediction").save_pretrained(into / "scheduler")
    networks.scheduler("epsilon").save_pretrained(into / "image_scheduler")
    size = sum(f.stat().st_size for f in into.rglob("*") if f.is_file())
    print(f"{into}: {size / 1e6:.1f} MB")


def _save(network: Network, folder: Path) -> None:
    """Save without the source path that diffusers writes into the configuration."""
    network.half().save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


def unpack(work: Path, source: Path) -> None:
    """The reverse, for every stage that continues from one of these files."""
    folders = {
        "vae": ["vae"],
        "image_unet": ["image_unet", "image_colors_unet"],
        "unet": ["video_unet", "vivid_unet", "start_unet"],
        "motion_adapter": ["motion_adapter", "vivid_adapter", "start_adapter"],
    }
    for name, targets in folders.items():
        for target in targets:
            shutil.copytree(source / name, work / target, dirs_exist_ok=True)
