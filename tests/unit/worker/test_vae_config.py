"""The autoencoder's precision and scaling, as its config and the entry say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sampler import seeded_noise
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from tests.tiny_models import save_vae, write_entry
from worker.networks.component_loader import load_network
from worker.networks.optimise import vae_decode, vae_encode
from worker.networks.vae_config import check_vae_config, unscaled_latents, vae_dtype


def entry(folder: Path, *lines: str, **config: Any) -> ModelEntry:
    """An entry whose autoencoder is there; `config` is added to its config.json, where None removes a key."""
    save_vae(folder / "vae")
    file = folder / "vae" / "config.json"
    written = json.loads(file.read_text()) | config
    file.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
    return write_entry(folder, "animatediff", *lines)


@pytest.mark.parametrize(
    ("dtype", "named", "force_upcast", "expected"),
    [
        ("float16", None, None, torch.float16),  # the first Stable Diffusion: no key, though diffusers' class says true
        ("float16", None, False, torch.float16),
        ("float16", None, True, torch.float32),
        ("bfloat16", None, True, torch.bfloat16),  # it has the range of float32
        ("float16", "float16", True, torch.float16),
        ("float16", "bfloat16", None, torch.bfloat16),
        ("bfloat16", "float32", False, torch.float32),
        ("float32", "float16", None, torch.float32),  # as on every CPU
    ],
)
def test_precision_is_the_entrys_or_what_the_config_asks(
    tmp_path: Path, dtype: str, named: str | None, force_upcast: bool | None, expected: torch.dtype
) -> None:
    made = entry(tmp_path, *([f'vae_dtype = "{named}"'] if named else []), force_upcast=force_upcast)
    assert vae_dtype(made, getattr(torch, dtype)) is expected


def decoded(made: ModelEntry, latents: Tensor) -> Tensor:
    return vae_decode.decode(load_network(made, "vae", torch.float32), latents)


def pixels(folder: Path, z: Tensor) -> Tensor:
    """By diffusers alone, from what the decoder takes."""
    with torch.no_grad():
        frames = AutoencoderKL.from_pretrained(folder / "vae").decode(z).sample
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


MEAN, STD = [0.5, -1.0, 0.0, 2.0], [1.0, 0.5, 2.0, 3.0]
SCALINGS: list[dict[str, Any]] = [
    {},
    {"scaling_factor": 1.5305, "shift_factor": 0.6},
    {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
]


def test_frames_are_encoded_to_the_mode_and_scaled_the_other_way(tmp_path: Path) -> None:
    """For each scaling the decoder would get back what the encoder gave; that of the plain one is diffusers' own."""
    frames = torch.randint(0, 256, (3, 32, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for i, config in enumerate(SCALINGS):
        vae = load_network(entry(tmp_path / str(i), **config), "vae", torch.float32)
        found = vae_encode.encode(vae, frames, frames_per_call=2)
        assert found.shape == (1, 4, 3, 8, 6)
        with torch.no_grad():
            mode = vae.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        torch.testing.assert_close(unscaled_latents(vae, found[0].transpose(0, 1)), mode, atol=1e-5, rtol=1e-4)
        if not config:
            torch.testing.assert_close(found[0].transpose(0, 1), 0.18215 * mode, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "scaled"),
    [
        ({}, lambda z: z / 0.18215),
        ({"scaling_factor": 1.5305, "shift_factor": 0.6}, lambda z: z / 1.5305 + 0.6),  # as in diffusers' SD 3
        (
            {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},  # as in diffusers' SDXL
            lambda z: z * torch.tensor(STD).view(1, 4, 1, 1) / 0.5 + torch.tensor(MEAN).view(1, 4, 1, 1),
        ),
        ({"latents_mean": MEAN}, lambda z: z / 0.18215),  # SDXL's pipeline wants both
        ({"use_post_quant_conv": False, "use_quant_conv": False}, lambda z: z / 0.18215),
    ],
    ids=["Stable Diffusion", "shift", "mean and deviation", "mean alone", "no quant convolutions"],
)
def test_latents_are_scaled_as_in_diffusers(tmp_path: Path, config: dict[str, Any], scaled: Any) -> None:
    torch.manual_seed(0)
    made = entry(tmp_path, **config)
    if config.get("use_post_quant_conv") is False:
        AutoencoderKL.from_config(json.loads((tmp_path / "vae" / "config.json").read_text())).save_pretrained(
            tmp_path / "vae"
        )
    latents = seeded_noise((1, 4, 2, 8, 8), 5)
    found, expected = decoded(made, latents).int(), pixels(tmp_path, scaled(latents[0].transpose(0, 1))).int()
    assert (found - expected).abs().max() <= 1  # channels-last kernels round otherwise
    assert (found - expected).count_nonzero() <= 0.001 * found.numel()
    assert found.float().std() > 1


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"scaling_factor": 0}, "scaling_factor=0 must be a number other than 0"),
        ({"scaling_factor": "1"}, "scaling_factor='1' must be a number"),
        ({"shift_factor": "0.1"}, "shift_factor='0.1' must be a number"),
        ({"latents_mean": [0.0]}, "latents_mean must be 4 numbers"),
        ({"latents_std": "1234"}, "latents_std must be 4 numbers"),
        ({"latents_std": [1, 1, 1, float("nan")]}, "latents_std must be 4 numbers"),
    ],
    ids=str,
)
def test_scaling_that_is_no_number_is_refused_with_the_file(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"vae/config\.json: ") as raised:
        check_vae_config(entry(tmp_path, **config))
    assert complaint in raised.value.message
