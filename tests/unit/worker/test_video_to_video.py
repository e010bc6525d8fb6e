"""Runs that begin at a picture or clip: latents equal to those of diffusers' AnimateDiffVideoToVideoPipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffVideoToVideoPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from diffusers.pipelines.animatediff import pipeline_animatediff_video2video as module
from PIL import Image
from torch import Tensor

from sampler import seeded_noise
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.storage import sha256_of
from tests.tiny_models import save_model
from worker.child.engine import Engine
from worker.child.mp4 import read_mp4, write_mp4

PROMPT, NEGATIVE, SEED, FRAMES = "a red circle moving left", "low quality", 7, 4
CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Tiny:
    """One tiny model, loaded by the worker and by diffusers, and a picture and a clip."""

    def __init__(self, folder: Path) -> None:
        entry = save_model("animatediff", folder)
        self.folder, self.entry = folder, entry
        self._write(CONFIG)
        self.engine = Engine(entry, torch.device("cpu"))
        models = self.engine.models
        self.noise = seeded_noise(models.latents_shape(), SEED)
        text, unet = models.video_text_encoder, UNet2DConditionModel.from_pretrained(folder / "unet")
        adapter = MotionAdapter.from_pretrained(folder / "motion_adapter")
        self.pipeline: Any = AnimateDiffVideoToVideoPipeline(
            models.vae, text.encoder, text.tokenizer, unet, adapter, DDIMScheduler()
        )
        self.pipeline.set_progress_bar_config(disable=True)
        pixels = np.random.default_rng(1).integers(0, 256, (FRAMES + 2, 8, 8, 3), np.uint8)
        self.picture, self.clip = folder / "picture.png", folder / "clip.mp4"
        Image.fromarray(pixels[0]).resize((64, 64)).save(self.picture)
        write_mp4(np.stack([np.asarray(Image.fromarray(x).resize((64, 64))) for x in pixels]), self.clip, fps=8)

    def configure(self, **changes: Any) -> None:
        self._write(CONFIG | changes)
        self.pipeline.scheduler = DDIMScheduler.from_config(CONFIG | changes)

    def _write(self, config: dict[str, Any]) -> None:
        (self.folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))

    def generation(self, file: Path, strength: float, **fields: Any) -> Generation:
        request = {"sampler": {"name": "ddim"}, "negative_prompt": NEGATIVE, "seed": SEED, **fields}
        media_type = "image/png" if file == self.picture else "video/mp4"
        reference = {"sha256": sha256_of(file), "media_type": media_type, "strength": strength}
        resolved = self.entry.resolve(VideoRequest.model_validate({"prompt": PROMPT, **request})).model_dump()
        return Generation.model_validate({**resolved, "reference": reference})

    def theirs(self, file: Path, generation: Generation) -> Tensor:
        assert generation.reference is not None
        frames = [np.asarray(Image.open(file))] * FRAMES if file == self.picture else read_mp4(file)[:FRAMES]
        return self.pipeline(
            video=[Image.fromarray(frame) for frame in frames],
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=32,
            width=32,
            num_inference_steps=generation.num_inference_steps,
            strength=generation.reference.strength,
            guidance_scale=generation.guidance_scale,
            output_type="latent",
        ).frames


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    tiny = Tiny(tmp_path_factory.mktemp("models") / "model")
    with pytest.MonkeyPatch.context() as patch:
        # The pipeline draws latents from the autoencoder's posterior, and then noise. Here it takes the posterior's
        # mode, as the worker does, and the worker's noise; everything else is its own.
        patch.setattr(module, "retrieve_latents", partial(module.retrieve_latents, sample_mode="argmax"))
        patch.setattr(module, "randn_tensor", lambda *_, **__: tiny.noise.transpose(1, 2))
        yield tiny


@pytest.mark.sample(6)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("steps", "strength"), [(6, 1.0), (6, 0.8), (5, 0.35), (3, 0.34)])
@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_latents_equal_those_of_the_pipeline(
    tiny: Tiny, kind: str, steps: int, strength: float, guidance: float
) -> None:
    tiny.configure()
    file: Path = getattr(tiny, kind)
    generation = tiny.generation(file, strength, num_inference_steps=steps, guidance_scale=guidance)
    found = tiny.engine.sample(generation, reference=file).latents
    expected = tiny.theirs(file, generation)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing", "set_alpha_to_one": True}, "adjacent"),
        ({"timestep_spacing": "linspace"}, "diffusers"),
    ],
    ids=["v-prediction", "grid of diffusers"],
)
def test_for_other_schedules_too(tiny: Tiny, config: dict[str, Any], grid: str) -> None:
    tiny.configure(**config)
    generation = tiny.generation(tiny.clip, 0.6, num_inference_steps=5, sampler={"name": "ddim", "grid": grid})
    found = Engine(tiny.entry, torch.device("cpu")).sample(generation, reference=tiny.clip).latents
    expected = tiny.theirs(tiny.clip, generation)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
