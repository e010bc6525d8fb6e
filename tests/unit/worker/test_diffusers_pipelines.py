"""Latents equal to those of diffusers' own pipelines with DDIMScheduler, from the same files, whatever those say."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    MotionAdapter,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from torch import Tensor

from sampler import sample, seeded_noise
from sampler.scheduler_config import CLASSES
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.request import VideoRequest
from service.jobs.timestep_spacing import Spacing
from tests.tiny_models import save_model
from worker.child.engine import Engine
from worker.networks.schedules import load_schedules, schedule_warnings
from worker.verify import verify

PROMPT, NEGATIVE = "a red circle moving left on a teal background", "low quality"
SD = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class Pair:
    """One tiny model, loaded by the worker and by diffusers."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = folder
        self.entry: ModelEntry = save_model(family, folder)
        self.engine = Engine(self.entry, torch.device("cpu"))
        models = self.engine.models
        parts = (models.vae, models.video_text_encoder.encoder, models.video_text_encoder.tokenizer)
        scheduler = DDIMScheduler()
        self.pipeline: Any
        if family == "animatediff":
            unet, adapter = (
                kind.from_pretrained(folder / name)
                for kind, name in ((UNet2DConditionModel, "unet"), (MotionAdapter, "motion_adapter"))
            )
            self.pipeline = AnimateDiffPipeline(*parts, unet, adapter, scheduler)
        else:
            self.pipeline = TextToVideoSDPipeline(
                *parts, UNet3DConditionModel.from_pretrained(folder / "unet"), scheduler
            )
        self.pipeline.set_progress_bar_config(disable=True)
        self.latents = seeded_noise(models.latents_shape(), seed=7)
        self.texts = models.encode([PROMPT, NEGATIVE]).video

    def write(self, config: dict[str, Any]) -> None:
        (self.folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))

    def ours(self, steps: int, guidance: float, entry: ModelEntry | None = None, **sampler: Any) -> Tensor:
        entry = entry or self.entry
        engine = self.engine
        image, video = load_schedules(entry)
        engine.models = replace(engine.models, entry=entry, image_schedule=image, video_schedule=video)
        request = VideoRequest(
            prompt=PROMPT, num_inference_steps=steps, guidance_scale=guidance, sampler={"name": "ddim", **sampler}
        )
        networks = dict(zip(("image", "video"), engine.models.denoisers(PROMPT, NEGATIVE), strict=True))
        return [step.latents for step in sample(self.latents, engine.plan(entry.resolve(request)), **networks)][-1]

    def theirs(self, scheduler: DDIMScheduler, steps: int, guidance: float) -> Tensor:
        self.pipeline.scheduler = scheduler
        with torch.no_grad():
            return self.pipeline(
                prompt_embeds=self.texts[:1],
                negative_prompt_embeds=self.texts[1:],
                latents=self.latents.clone(),
                num_frames=self.latents.shape[2],
                height=32,
                width=32,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
            ).frames


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return cache(lambda family: Pair(family, tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture
def animatediff(pairs: Callable[[str], Pair]) -> Pair:
    return pairs("animatediff")


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


CONFIGS: dict[str, dict[str, Any]] = {
    "as Stable Diffusion": {},
    "trailing": {"timestep_spacing": "trailing"},
    "no offset": {"steps_offset": 0},
    "500 timesteps": {"num_train_timesteps": 500},
    "clean end": {"set_alpha_to_one": True},
    "all": {
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "num_train_timesteps": 250,
        "set_alpha_to_one": True,
        "beta_schedule": "linear",
    },
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("family", ["animatediff", "modelscope"])
def test_ddim_runs_what_the_schedulers_file_says(
    pairs: Callable[[str], Pair], family: str, config: dict[str, Any], guidance: float
) -> None:
    pair = pairs(family)
    pair.write(SD | config)
    expected = pair.theirs(DDIMScheduler.from_config(SD | config), 2, guidance)
    assert error(pair.ours(2, guidance), expected) <= 1e-5


@pytest.mark.parametrize(
    ("config", "steps", "guidance"),
    [
        ({"timestep_spacing": "linspace"}, 6, 7.5),
        ({"timestep_spacing": "linspace", "set_alpha_to_one": True, "steps_offset": 0}, 3, 1.0),
        ({"timestep_spacing": "leading", "num_train_timesteps": 500}, 3, 7.5),
        ({"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True}, 3, 1.0),
        ({"timestep_spacing": "trailing", "set_alpha_to_one": True}, 3, 1.0),
        ({"timestep_spacing": "trailing", "num_train_timesteps": 500}, 3, 7.5),
        ({"timestep_spacing": "trailing"}, 1, 7.5),
    ],
    ids=str,
)
def test_grid_of_diffusers_is_exact_for_every_spacing(
    animatediff: Pair, config: dict[str, Any], steps: int, guidance: float
) -> None:
    animatediff.write(SD | config)
    expected = animatediff.theirs(DDIMScheduler.from_config(SD | config), steps, guidance)
    assert error(animatediff.ours(steps, guidance, grid="diffusers"), expected) <= 1e-5


def test_adjacent_grid_is_another_run_than_that_of_diffusers(animatediff: Pair) -> None:
    config = SD | {"timestep_spacing": "linspace"}
    animatediff.write(config)
    expected = animatediff.theirs(DDIMScheduler.from_config(config), 6, 1.0)
    assert error(animatediff.ours(6, 1.0), expected) > 1e-2


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "beta_schedule": "scaled_linear"},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "interpolation_type": "linear"},
        {"_class_name": "DPMSolverMultistepScheduler", "steps_offset": 1, "solver_order": 2},
        {"_class_name": "DDPMScheduler", "variance_type": "fixed_small", "clip_sample": False},
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
        {"_class_name": "DDIMScheduler", "trained_betas": [0.001 + 2e-5 * t for t in range(1000)]},
    ],
    ids=lambda config: f"{config['_class_name']}, {[*config][1]}",
)
def test_missing_keys_are_those_of_a_ddim_made_from_the_files_own_scheduler(
    animatediff: Pair, config: dict[str, Any]
) -> None:
    """diffusers forgets what the other class filled in: the run's defaults are DDIM's."""
    animatediff.write(config)
    own = getattr(diffusers, config["_class_name"]).from_pretrained(animatediff.folder / "scheduler")
    expected = animatediff.theirs(DDIMScheduler.from_config(own.config, clip_sample=False), 2, 7.5)
    assert error(animatediff.ours(2, 7.5), expected) <= 1e-5


def test_entry_overrides_only_what_it_names(animatediff: Pair) -> None:
    config = SD | {"timestep_spacing": "trailing", "set_alpha_to_one": True, "num_train_timesteps": 500}
    animatediff.write(config)
    named = {
        "spacing": {"steps_offset": 0, "timestep_spacing": "leading"},
        "video_schedule": {"beta_schedule": "linear"},
    }
    entry = ModelEntry.model_validate({**animatediff.entry.model_dump(exclude_unset=True), **named})
    expected = DDIMScheduler.from_config(config | named["spacing"] | named["video_schedule"])
    assert error(animatediff.ours(3, 7.5, entry), animatediff.theirs(expected, 3, 7.5)) <= 1e-5
    for_video = entry.model_copy(update={"video_schedule": {"timestep_spacing": "linspace"}})
    assert for_video.spacing_of("video").timestep_spacing == "linspace"
    assert for_video.spacing_of("image").timestep_spacing == "leading"


def test_steps_are_fixed_when_the_job_is_created_unless_the_api_could_only_estimate_them(animatediff: Pair) -> None:
    animatediff.write(SD | {"timestep_spacing": "trailing", "num_train_timesteps": 500})
    image, video = load_schedules(animatediff.entry)
    engine = copy.copy(animatediff.engine)
    engine.models = replace(engine.models, image_schedule=image, video_schedule=video)
    created = animatediff.entry.resolve(VideoRequest(prompt=PROMPT, sampler={"name": "ddim"}))
    by_the_file = engine.plan(created)
    assert [move.timestep for (move,) in by_the_file] == [499, 374, 249, 124]
    estimated = created.model_copy(update={"spacing": Spacing(is_estimate=True)})
    assert engine.plan(estimated) == by_the_file
    earlier = created.model_copy(update={"spacing": Spacing()})
    assert [move.timestep for (move,) in engine.plan(earlier)] == [376, 251, 126, 1]


def test_each_network_is_called_at_timesteps_of_its_own_schedule(animatediff: Pair) -> None:
    """Levels of equal noise: the image model's last of 500 timesteps is the video model's last of 1000."""
    animatediff.write(SD | {"timestep_spacing": "trailing"})
    file = animatediff.folder / "image_scheduler" / "scheduler_config.json"
    before = file.read_text()
    file.write_text(json.dumps(SD | {"num_train_timesteps": 500, "steps_offset": 0, "set_alpha_to_one": True}))
    image, video = load_schedules(animatediff.entry)
    engine = copy.copy(animatediff.engine)
    engine.models = replace(engine.models, image_schedule=image, video_schedule=video)
    mixed, alone = (
        engine.plan(animatediff.entry.resolve(VideoRequest(prompt=PROMPT, sampler=sampler)))
        for sampler in ({"combination": "I-I"}, {"name": "ddim", "network": "image"})
    )
    file.write_text(before)
    first, *_, last = mixed.steps[0]
    assert (first.model, first.timestep, last.model, last.timestep) == ("image", 499, "video", 999)
    assert [move.timestep for (move,) in alone] == [375, 250, 125, 0]
    assert alone.steps[-1][0].dst == 1


@pytest.mark.parametrize(("file", "network"), [("scheduler", "video"), ("image_scheduler", "image")])
def test_refused_schedule_names_network_file_and_the_way_out(animatediff: Pair, file: str, network: str) -> None:
    animatediff.write(SD)
    written = animatediff.folder / file / "scheduler_config.json"
    before = written.read_text()
    written.write_text(json.dumps(SD | {"rescale_betas_zero_snr": True}))
    way_out = {f"{network}_schedule": {"rescale_betas_zero_snr": False}}
    with pytest.raises(ConfigurationError) as raised:
        load_schedules(animatediff.entry)
    corrected = load_schedules(animatediff.entry.model_copy(update=way_out))
    written.write_text(before)
    for part in (
        f"schedule of the {network} model",
        str(written),
        "rescale_betas_zero_snr=False",
        f"{network}_schedule",
    ):
        assert part in raised.value.message
    assert len(corrected[1]) == 1000


@pytest.mark.parametrize(
    ("found", "named", "warns"),
    [("scaled_linear", None, True), ("linear", None, False), ("scaled_linear", "scaled_linear", False)],
)
def test_own_animatediff_entry_without_linear_betas_is_warned_of(
    animatediff: Pair, found: str, named: str | None, warns: bool
) -> None:
    animatediff.write(SD | {"beta_schedule": found})
    entry = animatediff.entry.model_copy(update={"video_schedule": {"beta_schedule": named} if named else {}})
    warnings = list(schedule_warnings(entry))
    assert len(warnings) == warns
    assert all('video_schedule = { beta_schedule = "linear" }' in warning for warning in warnings)
    assert [line for line in verify(entry) if "linear" in line] == [f"warning: {warning}" for warning in warnings]


def test_mistyped_key_of_a_schedulers_file_is_warned_of(animatediff: Pair) -> None:
    """Refusing it would be too much: the file is its author's, and diffusers ignores what it does not know."""
    real = {key: 1 for name in CLASSES for key in inspect.signature(getattr(diffusers, name).__init__).parameters}
    animatediff.write(real | SD | {"use_flow_sigmas": False, "thresholding": False, "beta_schedule": "linear"})
    assert list(schedule_warnings(animatediff.entry)) == []
    animatediff.write(SD | {"beta_schedule": "linear", "beta_shedule": "scaled_linear"})
    (warning,) = schedule_warnings(animatediff.entry)
    assert "no scheduler reads beta_shedule; probably beta_schedule is meant" in warning
