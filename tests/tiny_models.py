"""Tiny random models of the three families in their released file layout, to test the loader.

The networks are those of the golden files, so that results can be compared with the released code.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry

DATA = Path(__file__).parent / "data"
IMAGE_WIDTH, VIDEO_WIDTH = 32, 16  # embedding widths of the golden networks; both of AnimateDiff's are IMAGE_WIDTH

ENTRY = """
family = "{family}"
path = "."
created = 1795392000
description = "tiny"
licence = "none"
sizes = ["32x32"]
num_frames = {{ default = 4, min = 1, max = 8 }}
fps = {{ default = 8, min = 1, max = 24 }}
num_inference_steps = {{ default = 4, min = 1, max = 50 }}
guidance_scale = {{ default = 3, min = 0, max = 20 }}
"""


class Golden:
    """Metadata and tensors of one family's golden file."""

    def __init__(self, family: str) -> None:
        with safe_open(DATA / f"golden_{family}.safetensors", "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict

    def part(self, name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}


def save_model(family: str, folder: Path) -> ModelEntry:
    """Save a complete model into `folder` and return its registry entry."""
    shutil.copytree(_saved(family), folder, dirs_exist_ok=True)
    torch.manual_seed(0)  # of what the test draws next
    return write_entry(folder, family)


@cache
def _saved(family: str) -> Path:
    """A folder with all files of the family's model; made once per process."""
    temporary = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    folder = temporary / "model"  # with the usual mode, which copies get
    folder.mkdir()
    golden = Golden(family)
    torch.manual_seed(0)
    animatediff = family == "animatediff"
    save_text(folder, "", IMAGE_WIDTH if animatediff else VIDEO_WIDTH)
    save_text(folder, "image_", IMAGE_WIDTH)
    save_vae(folder / "vae")
    if animatediff:
        save_unet(folder / "unet", golden.meta["idm_config"], golden.part("base"))
        adapter = MotionAdapter(**golden.meta["adapter_config"])
        adapter.load_state_dict(golden.part("adapter"))
        adapter.save_pretrained(folder / "motion_adapter")
    else:
        save_weights(folder / "unet", golden.meta["vdm_config"], golden.part("vdm"))
    save_unet(folder / "image_unet", golden.meta["idm_config"], golden.part("idm"))
    for name in ("scheduler", "image_scheduler"):
        config = golden.meta.get("scheduler") or golden.meta["inner_scheduler"]
        (folder / name).mkdir()
        (folder / name / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def animatediff_without_image_parts(folder: Path) -> Path:
    """AnimateDiff whose image model is its base and reads the video model's embeddings: all weights are shared."""
    save_model("animatediff", folder)
    for name in ("image_unet", "image_tokenizer", "image_text_encoder"):
        shutil.rmtree(folder / name)
    return folder


def write_entry(folder: Path, family: str, *lines: str) -> ModelEntry:
    """Write `folder`'s models.toml and return its entry; `lines` are added to the TOML."""
    file = folder / "models.toml"
    file.write_text("[models.tiny]" + ENTRY.format(family=family) + "\n".join(lines))
    return ModelRegistry.load(file).entry("tiny")


def save_unet(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict(weights)
    unet.save_pretrained(folder)


def save_weights(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "diffusion_pytorch_model.safetensors"
    )


def save_text(folder: Path, prefix: str, width: int) -> None:
    """Save the demo's tokenizer and a random text encoder for it."""
    demo = ModelRegistry.load().get("demo").path
    assert demo is not None
    shutil.copytree(demo / "tokenizer", folder / f"{prefix}tokenizer")
    tokens = CLIPTokenizer.from_pretrained(demo / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    CLIPTextModel(config).save_pretrained(folder / f"{prefix}text_encoder")


def save_vae(folder: Path, latent_channels: int = 4) -> None:
    """Save a VAE with scale factor 4: the golden latents are 8x8, the entry's frames 32x32."""
    levels = (8, 8, 8)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        block_out_channels=levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
