"""The diffusers configs of the files that have none: a single-file checkpoint, VAE or motion modules.

A config is read from a folder in the diffusers layout if the user names one; else it is the standard one of Stable
Diffusion 1 or 2, as the hub has it, or is derived from the shapes of the weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from service.catalog.family_components import SDXL, Family
from service.errors import ConfigurationError
from worker.adding.weights_file import WeightsFile

Prediction = Literal["epsilon", "v_prediction"]
Config = dict[str, Any]

FOUR = 4  # levels of all networks of Stable Diffusion 1 and 2
VAE_CONFIG: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * FOUR,
    "up_block_types": ["UpDecoderBlock2D"] * FOUR,
    "latent_channels": 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
    "sample_size": 512,
}
_TEXT: Config = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_SCHEDULER: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
_BIG: Config = {  # OpenCLIP ViT-bigG/14
    **_TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
SDXL_VAE_CONFIG: Config = {**VAE_CONFIG, "scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True}
SDXL_UNET: Config = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
# By the width of the text embeddings; what is left out is the default of the class.
STANDARD: dict[int, dict[str, Config]] = {
    768: {
        "unet": {"cross_attention_dim": 768, "sample_size": 64},
        "text_encoder": {**_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768},
        "vae": VAE_CONFIG,
        "scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **_SCHEDULER},
    },
    1024: {
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
        | {"sample_size": 96, "upcast_attention": True},
        "text_encoder": {**_TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
        | {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512},
        "vae": VAE_CONFIG,
        "scheduler": {"_class_name": "DDIMScheduler", **_SCHEDULER},
    },
}
STANDARD[2048] = {
    "unet": SDXL_UNET,
    "text_encoder": STANDARD[768]["text_encoder"],
    "text_encoder_2": _BIG,
    "vae": SDXL_VAE_CONFIG,
    "scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **_SCHEDULER},
}


def checkpoint_configs(file: WeightsFile, folder: Path | None, prediction: Prediction | None) -> dict[str, Config]:
    """Configs of all components and the scheduler. Raises ConfigurationError naming the option that helps."""
    width = file.text_width or 0
    configs = dict(STANDARD.get(width, {}))
    for name in (*file.prefixes, "scheduler"):
        if (found := read_config(folder, name)) is not None:
            configs[name] = found
    if "unet" not in configs:
        raise ConfigurationError(
            f"{file.where} has a UNet that reads text embeddings of dim {width}, Stable Diffusion 1 has 768, 2 has "
            "1024 and SDXL 2048; name a folder with its diffusers configs (unet/config.json and so on) with --config"
        )
    if prediction is None and file.is_sdxl and file.has("^v_pred$"):  # how fine-tunes with v-prediction say so
        prediction = "v_prediction"
    if prediction is not None:
        configs["scheduler"] = {**configs.get("scheduler", {}), "prediction_type": prediction}
    elif width == 1024 and read_config(folder, "scheduler") is None:
        raise ConfigurationError(
            f"{file.where} is a Stable Diffusion 2 checkpoint, which does not say what its UNet predicts; add "
            "--prediction-type v_prediction (versions for 768x768) or --prediction-type epsilon (base versions)"
        )
    return configs


def vae_config(folder: Path | None, family: Family) -> Config:
    return read_config(folder, "vae") or (SDXL_VAE_CONFIG if family == SDXL else VAE_CONFIG)


def motion_config(file: WeightsFile, folder: Path | None) -> Config:
    """The version's differences are in the shapes: v1 has 24 positions, v2 and v3 have 32; only v2 has a mid block."""
    if (found := read_config(folder, "motion_adapter")) is not None:
        return found
    layers = {m[1] for name in file.shapes if (m := re.search(r"down_blocks\.0\.motion_modules\.(\d+)\.", name))}
    positions = {shape[1] for name, shape in file.shapes.items() if name.endswith((".pe",)) and len(shape) == 3}
    if not file.motion_widths or len(positions) != 1:
        raise ConfigurationError(
            f"{file.where} has motion modules whose widths or positions cannot be read; name a folder with "
            "motion_adapter/config.json with --config"
        )
    return {
        "block_out_channels": file.motion_widths,
        "motion_layers_per_block": len(layers),
        "motion_max_seq_length": positions.pop(),
        "use_motion_mid_block": file.has(r"^(module\.)?mid_block\."),
    }


def read_config(folder: Path | None, name: str) -> Config | None:
    """The config of a component in a folder that the user named; None if it has none. Raises ConfigurationError."""
    file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json") if folder else None
    return read_json(file) if file and file.is_file() else None


def read_json(file: Path) -> Config:
    """Raises ConfigurationError."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, RecursionError, ValueError) as e:
        raise ConfigurationError(f"{file} cannot be read as JSON: {e}") from e
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} is not a JSON object")
    return content  # pyright: ignore[reportUnknownVariableType]
