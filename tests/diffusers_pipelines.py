"""diffusers' pipelines of the tiny AnimateDiff model, and ours with the same steps, to compare their latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sampler import NoiseSchedule, ddim_plan, sample, seeded_noise
from tests.lora_files import Weights
from worker.networks.models import Models

PROMPT, NEGATIVE = "a red circle moving left", "a green square"
GUIDANCE = (1.0, 7.5)
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Pipelines:
    """diffusers' pipelines of the tiny model: the same networks in StableDiffusion and AnimateDiff."""

    def __init__(self, folder: Path) -> None:
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        vae = AutoencoderKL.from_pretrained(folder / "vae")
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        adapter = MotionAdapter.from_pretrained(folder / "motion_adapter")
        self.image = StableDiffusionPipeline(
            vae, self.text, tokenizer, unet, DDIMScheduler(**CONFIG), None, None, requires_safety_checker=False
        )
        self.video = AnimateDiffPipeline(vae, self.text, tokenizer, unet, adapter, DDIMScheduler(**CONFIG))
        for pipeline in (self.image, self.video):
            pipeline.set_progress_bar_config(disable=True)

    def latents(self, which: str, guidance: float, prompt: str = PROMPT) -> Tensor:
        pipeline: Any = getattr(self, which)
        settings = {"num_frames": 3} if which == "video" else {}
        x = seeded_noise((1, 4, 3, 8, 8) if which == "video" else (1, 4, 8, 8), 5)
        made = pipeline(
            prompt=prompt,
            negative_prompt=NEGATIVE,
            height=32,
            width=32,
            num_inference_steps=2,
            guidance_scale=guidance,
            latents=x,
            output_type="latent",
            **settings,
        )
        return made.frames if which == "video" else made.images[:, :, None]

    def add(self, which: str, added: Weights) -> None:
        """Add to weights of the UNet or, by the names of its layers, of the text encoder."""
        for name, value in added.items():
            network = self.text if name.startswith("encoder.") else getattr(self, which).unet
            network.get_submodule(name).weight.data += value


def ours(models: Models, which: str, guidance: float, prompt: str = PROMPT) -> Tensor:
    schedule = NoiseSchedule.from_config(CONFIG)
    plan = ddim_plan(schedule, 2, guidance=guidance, model="video" if which == "video" else "image")
    denoisers = dict(zip(("image", "video"), models.denoisers(prompt, NEGATIVE), strict=True))
    x = seeded_noise((1, 4, 3, 8, 8) if which == "video" else (1, 4, 8, 8), 5)
    x = x if which == "video" else x[:, :, None]
    return list(sample(x, plan, **{which: denoisers[which]}))[-1].latents


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_same_latents(models: Models, pipelines: Pipelines, which: str, prompt: str = PROMPT) -> None:
    for guidance in GUIDANCE:
        assert_same(ours(models, which, guidance, prompt), pipelines.latents(which, guidance, prompt))
