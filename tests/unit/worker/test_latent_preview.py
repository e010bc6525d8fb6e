"""Previews look like the video, and change nothing about it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.factories import make_generation
from tests.tiny_models import save_model
from tests.unit.sampler.test_device_sync import CountReads
from worker.child.engine import Engine
from worker.child.latent_preview import LatentPreview, open_previewer
from worker.networks.loading import load
from worker.networks.preview import Previewer, stride, synthetic_pictures

STEPS = 4


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.asarray(a, float).ravel(), np.asarray(b, float).ravel())[0, 1])


def pictures_of(preview: bytes | None) -> list[Image.Image]:
    assert preview is not None
    file = Image.open(io.BytesIO(preview))
    return [file.copy().convert("RGB") for i in range(file.n_frames) if file.seek(i) is None]


def test_previews_of_the_demo_look_like_the_finished_video_and_leave_it_as_it_is(loaded_engine: Engine) -> None:
    """Measured 2026-11: correlations 0.82, 0.86, 0.98 and 0.98 with the finished frames."""
    engine = copy.copy(loaded_engine)
    generation = make_generation(num_inference_steps=STEPS)
    without = engine.generate(generation).frames.numpy()
    engine._previewer = open_previewer(engine.models)
    shown: list[bytes | None] = []

    def show(make: Any) -> None:
        preview = make()
        assert isinstance(preview, LatentPreview)
        assert preview.frame_ms == 250  # every second of eight frames a second
        shown.append(preview.encode())

    sampled = engine.sample(generation, on_preview=show)
    assert np.array_equal(engine.decode(sampled).frames.numpy(), without)
    likeness: list[float] = []
    for preview in shown:
        pictures = pictures_of(preview)
        wanted = [Image.fromarray(frame).resize(pictures[0].size) for frame in without[:: stride(len(without))]]
        likeness.append(correlation(pictures, wanted))
    assert len(shown) == STEPS
    assert min(likeness) > 0.75, likeness
    assert likeness[-1] > 0.97


class LinearVae(nn.Module):
    """Latents that are an affine function of colour, as those of large autoencoders almost are."""

    dtype = torch.float32

    def __init__(self, *, encoder: bool = True, **config: Any) -> None:
        super().__init__()
        empty = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": None, "latents_std": None}
        self.config = SimpleNamespace(**(empty | config), block_out_channels=(1,) * 4, latent_channels=4)
        self.mixing = torch.tensor([[1.0, 0.5, 0.2], [-0.3, 1.0, 0.4], [0.1, -0.6, 1.0], [0.7, 0.1, -0.9]])
        self.offset = torch.tensor([0.5, -1.0, 0.0, 2.0]).view(4, 1, 1)
        self.encoder = nn.Identity() if encoder else None
        self.decoder = nn.Linear(10**8, 1, device="meta")  # too large to show previews

    def encode(self, pictures: Tensor) -> Any:
        colours = F.avg_pool2d(pictures, 8)
        return SimpleNamespace(
            latent_dist=SimpleNamespace(mean=torch.einsum("lc,ncyx->nlyx", self.mixing, colours) + self.offset)
        )

    def decode(self, latents: Tensor) -> Any:
        colours = torch.einsum("cl,nlyx->ncyx", torch.linalg.pinv(self.mixing), latents - self.offset)
        return SimpleNamespace(sample=F.interpolate(colours, scale_factor=8.0))

    def latents_of(self, pictures: Tensor) -> Tensor:
        """As the diffusion models see them, by diffusers' formulas; a clip (1, C, F, h, w)."""
        z, config = self.encode(pictures).latent_dist.mean, self.config
        if config.latents_mean is not None:
            mean, std = (torch.tensor(x).view(4, 1, 1) for x in (config.latents_mean, config.latents_std))
            return ((z - mean) * config.scaling_factor / std).transpose(0, 1)[None]
        return ((z - (config.shift_factor or 0.0)) * config.scaling_factor).transpose(0, 1)[None]


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 1.5305, "shift_factor": 0.6},
        {"scaling_factor": 0.5, "latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 0.5, 2.0, 3.0]},
        {"scaling_factor": 0.18215, "encoder": False},
    ],
    ids=["Stable Diffusion", "shift", "mean and deviation", "no encoder"],
)
def test_a_projection_is_fitted_to_every_kind_of_autoencoder(config: dict[str, Any]) -> None:
    vae = LinearVae(**config)
    previewer = Previewer(vae, torch.device("cpu"))
    pictures = synthetic_pictures(64)[:16]
    latents = vae.latents_of(pictures)
    with CountReads() as reads:  # on a GPU each would wait for the queued steps
        shown = previewer.frames(latents).frames
    assert not reads.count
    wanted = F.avg_pool2d(pictures[::4], 8).permute(0, 2, 3, 1)
    assert shown.shape == (4, 8, 8, 3)
    assert correlation(shown, wanted) > 0.99
    assert abs(shown / 127.5 - 1 - wanted.numpy()).mean() < 0.1


@pytest.mark.parametrize("family", ["animatediff", "modelscope", "videocrafter"])
def test_every_family_has_previews(family: str, tmp_path: Path) -> None:
    previewer = open_previewer(load(save_model(family, tmp_path / "model"), "cpu"))
    assert previewer is not None
    assert 0 < previewer.cost_s < 1


def test_an_autoencoder_that_gives_nothing_to_show_costs_the_previews_only(
    loaded_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    vae = copy.deepcopy(loaded_engine.models.vae)
    for parameter in vae.parameters():
        parameter.data.fill_(torch.nan)
    models = copy.copy(loaded_engine.models)
    object.__setattr__(models, "vae", vae)
    assert open_previewer(models) is None
    assert "no previews" in caplog.text


@pytest.mark.gpu
def test_a_preview_never_waits_for_a_gpu() -> None:
    device = torch.device("cuda")
    vae = LinearVae(scaling_factor=0.18215)
    vae.mixing, vae.offset = vae.mixing.to(device), vae.offset.to(device)
    previewer = Previewer(vae, device)
    latents = torch.randn(1, 4, 16, 64, 64, device=device)
    previewer.frames(latents)  # takes pinned memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        copied = previewer.frames(latents)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert copied.is_complete
    assert copied.frames.shape == (4, 64, 64, 3)
