"""Distilled motion modules: latents equal to diffusers' pipeline with the schedulers that their authors name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, EulerDiscreteScheduler, LCMScheduler, MotionAdapter, UNet2DConditionModel
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from tests.tiny_models import save_model
from worker.adding.distilled import distilled_settings
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "a red circle moving left on a teal background"


class Tiny:
    def __init__(self, folder: Path) -> None:
        self.raw = save_model("animatediff", folder).model_dump()
        self.engine = Engine(self.entry("lightning"), torch.device("cpu"))
        models = self.engine.models
        parts = (models.vae, models.video_text_encoder.encoder, models.video_text_encoder.tokenizer)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        adapter = MotionAdapter.from_pretrained(folder / "motion_adapter")
        self.pipeline: Any = AnimateDiffPipeline(*parts, unet, adapter, LCMScheduler())
        self.pipeline.set_progress_bar_config(disable=True)

    def entry(self, distilled: str) -> ModelEntry:
        return ModelEntry.model_validate(self.raw | distilled_settings(distilled))

    def start(self, generation: Generation) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(generation.seed)
        return torch.randn(self.engine.models.latents_shape(generation), generator=generator), generator

    def latents(self, scheduler: Any, generation: Generation, x: Tensor, generator: torch.Generator) -> Tensor:
        self.pipeline.scheduler = scheduler
        return self.pipeline(
            prompt=generation.prompt,
            negative_prompt=generation.negative_prompt,
            num_frames=generation.num_frames,
            height=x.shape[-2] * self.pipeline.vae_scale_factor,
            width=x.shape[-1] * self.pipeline.vae_scale_factor,
            num_inference_steps=generation.num_inference_steps,
            guidance_scale=generation.guidance_scale,
            latents=x,
            generator=generator,
            output_type="latent",
        ).frames


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("distilled"))


def request(**fields: Any) -> VideoRequest:
    return VideoRequest(prompt=PROMPT, seed=3, **fields)


@pytest.mark.sample(2)
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lightning_equals_eulers_scheduler(tiny: Tiny, steps: int) -> None:
    generation = tiny.entry(f"lightning:{steps}").resolve(request())
    assert (generation.num_inference_steps, generation.guidance_scale) == (steps, 1)
    x, generator = tiny.start(generation)
    scheduler = EulerDiscreteScheduler(1000, 0.00085, 0.012, "linear", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    # Ours starts at unit variance, Euler's at its noise-to-signal ratio times what it is given.
    s = scheduler.init_noise_sigma
    theirs = tiny.latents(scheduler, generation, x * (1 + s**2) ** 0.5 / s, generator)
    assert_same(tiny.engine.sample(generation).latents, theirs)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_lcm_equals_its_scheduler_and_resumes(tiny: Tiny, guidance: float) -> None:
    generation = tiny.entry("lcm").resolve(request(guidance_scale=guidance))
    x, generator = tiny.start(generation)
    seen: list[Checkpoint] = []
    ours = tiny.engine.sample(generation, on_step=seen.append).latents
    scheduler = LCMScheduler(beta_schedule="linear", clip_sample=False)
    assert_same(ours, tiny.latents(scheduler, generation, x, generator))
    assert len(seen) == generation.total_steps == sum(generation.network_calls.values()) == 4


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize(
    ("sampler", "param"),
    [
        ({"name": "iv-mixed", "combination": "IV-IV"}, "sampler.combination"),
        ({"name": "iv-mixed", "video_guidance": [4, 4]}, "sampler.video_guidance"),
        ({"name": "zigzag"}, "sampler.name"),
        ({"name": "fused"}, "sampler.name"),
        ({"name": "official"}, "sampler.name"),
        ({"network": "image"}, "sampler.network"),
    ],
)
def test_what_needs_the_video_models_answer_without_the_prompt_is_refused(
    tiny: Tiny, sampler: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        tiny.entry("lightning").resolve(request(sampler=sampler))
    assert refused.value.param == param


def test_mixed_without_the_video_model_going_back_runs(tiny: Tiny) -> None:
    generation = tiny.entry("lightning").resolve(request(sampler={"name": "iv-mixed", "combination": "I-V"}))
    assert generation.network_calls == {"image": 3, "video": 7}
    assert tiny.engine.sample(generation).latents.isfinite().all()


def test_lcm_with_the_mixed_sampler_or_too_many_steps_is_refused(tiny: Tiny) -> None:
    with pytest.raises(InvalidParameter, match="draws new noise") as refused:
        tiny.entry("lcm").resolve(request(sampler={"name": "iv-mixed"}))
    assert refused.value.param == "sampler.solver"
    any_steps = ModelEntry.model_validate(tiny.raw | {"num_inference_steps": {"default": 50, "min": 1, "max": 100}})
    with pytest.raises(InvalidParameter, match="at most 50"):
        any_steps.resolve(request(num_inference_steps=51, sampler={"name": "ddim", "solver": "lcm"}))


@pytest.mark.parametrize("given", ["turbo", "lightning:", "lightning:0", "lcm:9", "lightning:4.5", "LCM"])
def test_another_distillation_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="--distilled"):
        distilled_settings(given)
