"""Broken model folders whose LoRA or textual inversion is valid alone, and not together with the model's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import lora_files
from tests.broken_models import Broken, weights
from tests.lora_files import Numbers


def lora(keys: dict[str, torch.Tensor]) -> Callable[[Path], object]:
    return lambda folder: save_file(keys, folder / "style.safetensors")


LORA = ('components = { lora = "here/style.safetensors" }', "[sources.here]", 'folder = "."')
LOUD = ("lora_scale = 1e8", *LORA)
WORD = (
    "[[models.tiny.textual_inversions]]",
    'file = "here/style.safetensors"',
    'token = "<x>"',
    "[sources.here]",
    'folder = "."',
)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 16 to 16
MOTION_LAYER = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_model_encoder_layers_0_self_attn_q_proj"  # 32 to 32
SQUARE = {LAYER: torch.ones(16, 16)}
HALF_PRECISION = ("style.safetensors: ", "overflows the weights of the layer in float16", 'dtype = "bfloat16"')


def peft(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return lora_files.dotted(prefix, weights, Numbers(), ".lora_A.weight", ".lora_B.weight")


def cancelled_rows(folder: Path) -> None:
    """A DoRA of a layer of zeros: its norms divide by zero."""
    weights("unet", lambda w: w | {f"{LAYER}.weight": torch.zeros(16, 16)})(folder)
    file = lora_files.kohya("lora_unet", SQUARE, Numbers(), dora=True)
    lora({key: value * 0 if "lora_up" in key else value for key, value in file.items()})(folder)


SUMS = {
    "LoRA that overflows": Broken(lora(peft("unet.", SQUARE)), (*HALF_PRECISION, "to_q.lora_A.weight"), lines=LOUD),
    "LoRA that overflows float16, in bfloat16": Broken(
        lora(peft("unet.", SQUARE)), entry={"dtype": "bfloat16"}, lines=LOUD
    ),
    "LoRA that overflows float32": Broken(
        lora({key: value.sign() * 1e30 for key, value in peft("unet.", SQUARE).items()}),
        ("style.safetensors: ", "to_q.lora_A.weight"),
        entry={"dtype": "float32"},
        lines=LORA,
    ),
    "LoCon that overflows": Broken(
        lora(lora_files.kohya("lora_unet", {"conv_in": torch.ones(16, 4, 3, 3)}, Numbers())), HALF_PRECISION, lines=LOUD
    ),
    "LoHa that overflows": Broken(lora(lora_files.loha("lora_unet", SQUARE, Numbers())[0]), HALF_PRECISION, lines=LOUD),
    "LoKr that overflows": Broken(lora(lora_files.lokr("lora_unet", SQUARE, Numbers())[0]), HALF_PRECISION, lines=LOUD),
    "motion LoRA that overflows": Broken(
        lora(peft("unet.", {MOTION_LAYER: torch.ones(16, 16)})), (*HALF_PRECISION, "motion_modules"), lines=LOUD
    ),
    "text encoder's LoRA that overflows": Broken(
        lora(lora_files.kohya("lora_te", {TEXT_LAYER: torch.ones(32, 32)}, Numbers())), HALF_PRECISION, lines=LOUD
    ),
    "DoRA that divides by zero": Broken(cancelled_rows, ("style.safetensors: ", "to_q"), lines=LORA),
    "LoRA within the precision": Broken(lora(peft("unet.", SQUARE)), lines=LORA),
    "textual inversion that overflows": Broken(
        lora({"emb_params": torch.full((1, 32), 1e6)}),
        ("style.safetensors: emb_params holds 1e+06", 'dtype = "bfloat16"'),
        lines=WORD,
    ),
}
