"""Sampler `official` from a request to latents, with tiny networks of the three families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from sampler import NoiseSchedule, official_plan, official_plans
from service.jobs.denoiser_calls import network_calls
from service.jobs.model import Generation
from service.jobs.released_loops import RELEASED, Family
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.timestep_spacing import Spacing
from tests.tiny_models import Golden, save_model
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.fingerprint import run_fingerprint, weights_digest
from worker.networks.text_encoder import Encoded, TextEncoder

FAMILIES: tuple[Family, ...] = tuple(RELEASED)
PROMPT = "a red circle moving left on a teal background"
NAMES = {"interval": "active_steps", "gi": "image_guidance", "gv": "video_guidance", "rho": "rho", "zz": "zz"}


@dataclass(frozen=True, kw_only=True)
class FixedTexts(TextEncoder):
    """Returns given embeddings (1, tokens, dim) instead of encoding: those of PROMPT, and others for any other text."""

    prompt: Tensor
    negative: Tensor

    def tokenize(self, texts: Sequence[str], options: Any = None, limit: int | None = None) -> Any:
        return torch.tensor([text == PROMPT for text in texts])

    def encode(self, tokens: Any, clip_skip: Sequence[int] = ()) -> Encoded:
        return Encoded(torch.cat([self.prompt if is_prompt else self.negative for is_prompt in tokens]))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("models")
    return {family: Engine(save_model(family, folder / family), torch.device("cpu")) for family in FAMILIES}


def resolve(engine: Engine, request: dict[str, Any], **sampler: Any) -> Generation:
    given = {"prompt": PROMPT, "seed": 3, "num_frames": 3, "sampler": {"name": "official", **sampler}}
    return engine.models.entry.resolve(VideoRequest.model_validate(given | request))


# -- against the released code's own results -------------------------------------------------------------------------


def golden_texts(golden: Golden, encoder: TextEncoder, prefix: str) -> FixedTexts:
    tensors, negative = golden.tensors, f"{prefix}negative_{'' if prefix else 'prompt_'}embeds"
    texts = {"prompt": tensors[f"{prefix}prompt_embeds"], "negative": tensors[negative]}
    return FixedTexts(tokenizer=encoder.tokenizer, encoder=encoder.encoder, **texts)


def with_texts(engine: Engine, golden: Golden) -> Engine:
    """The engine, reading the golden embeddings. AnimateDiff's image text encoder is one that the loop must not use."""
    models, reading = engine.models, Engine.__new__(Engine)
    prefixes = ("", "") if models.entry.family == "animatediff" else ("idm_", "vdm_")
    image, video = (
        golden_texts(golden, encoder, prefix)
        for encoder, prefix in zip((models.image_text_encoder, models.video_text_encoder), prefixes, strict=True)
    )
    if models.entry.family == "animatediff":
        image = replace(image, prompt=-image.prompt)
    vars(reading).update(vars(engine), models=replace(models, image_text_encoder=image, video_text_encoder=video))
    return reading


def released_request(engine: Engine, golden: Golden, case: dict[str, Any]) -> Generation:
    changes = {NAMES[name]: value for name, value in case.items() if name in NAMES}
    request = {
        "num_frames": golden.tensors["latents"].shape[2],
        "fps": golden.meta.get("fps"),
        "num_inference_steps": case["steps"],
        "guidance_scale": golden.meta["guidance_scale"],
    }
    return resolve(engine, request, **changes)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("family", "case"),
    [
        *(("animatediff", case) for case in ("interval_2_5", "zz2", "dynamic_cfg")),
        *(("videocrafter", case) for case in ("default_6", "idm_always")),
        *(pytest.param("modelscope", case, marks=pytest.mark.slow) for case in ("default_6", "interval_1_3")),
    ],
)
def test_engine_reproduces_the_released_loop(
    engines: dict[str, Engine], tmp_path: Path, family: str, case: str
) -> None:
    """From a checkpoint at step 0 with the golden noise. ModelScope's image network sees 64x64: that takes a minute."""
    golden, engine = Golden(family), engines[family]
    generation = released_request(engine, golden, golden.meta["cases"][case])
    models = engine.models
    name = run_fingerprint(weights_digest(models), models.entry.optimise, generation, engine.plan(generation))
    rng = Generator().manual_seed(golden.meta["cases"][case].get("seed", 0)).get_state()
    Checkpoint(name, 0, golden.tensors["latents"], {}, rng).write(tmp_path / "start")
    found = with_texts(engine, golden).sample(generation, resume=tmp_path / "start").latents
    expected = golden.tensors[f"out.{case}"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_modelscopes_image_network_sees_the_frames_at_64x64(engines: dict[str, Engine]) -> None:
    engine, shapes = engines["modelscope"], set[tuple[int, ...]]()
    unet = engine.models.image_unet
    hook = unet.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape)))
    try:
        released = resolve(engine, {"num_frames": 1, "num_inference_steps": 2}, active_steps=[0, 0])
        assert engine.sample(released).latents.shape == (1, 4, 1, 8, 8)
        assert shapes == {(2, 4, 64, 64)}, "one frame, with and without prompt"
        shapes.clear()
        engine.sample(resolve(engine, {"num_frames": 1, "num_inference_steps": 2}, name="iv-mixed"))
        assert shapes == {(2, 4, 8, 8)}
    finally:
        hook.remove()


def test_each_network_has_its_own_text_encoder_where_the_released_one_does_not_fit(engines: dict[str, Engine]) -> None:
    engine = with_texts(engines["animatediff"], Golden("animatediff"))
    wide = replace(engine.models.image_text_encoder, encoder=engines["videocrafter"].models.video_text_encoder.encoder)
    engine.models = replace(engine.models, image_text_encoder=wide)
    image, video = engine.denoisers(resolve(engine, {}))
    assert not torch.equal(image.cond, video.cond)


# -- the plan --------------------------------------------------------------------------------------------------------


def test_both_networks_of_animatediff_run_on_the_schedule_of_the_image_model(engines: dict[str, Engine]) -> None:
    """The released code leaves out the linear schedule that the motion modules were trained with."""
    engine = Engine.__new__(Engine)
    own = NoiseSchedule.linear(0.00085, 0.012)
    vars(engine).update(models=replace(engines["animatediff"].models, video_schedule=own))
    scaled = NoiseSchedule.scaled_linear(0.00085, 0.012)
    assert engine.plan(resolve(engine, {})) == official_plan("animatediff", scaled, 4, guidance=3)
    iv_mixed = engine.plan(resolve(engine, {}, name="iv-mixed"))
    assert iv_mixed.steps[0][0].src == own.alphas_cumprod[999]  # linspace, as the scheduler's file says


def test_table_without_torch_is_the_samplers() -> None:
    for family, loop in RELEASED.items():
        form = official_plans.FAMILIES[family]
        assert (loop.active_steps, loop.zz) == (form.interval, form.zz)
        assert (loop.swaps_timesteps, loop.has_solver) == (form.swaps_timesteps, form.outer != "ddim")
        assert ("zz" in loop.ignored, "rho" in loop.ignored) == (form.zz is None, not form.has_dynamic_guidance)
    defaults = {
        name: SamplerSettings.model_fields[name].default for name in ("image_guidance", "video_guidance", "rho")
    }
    assert defaults == {name: official_plan.__kwdefaults__[name] for name in defaults}
    assert len(fields(official_plans.FAMILIES["animatediff"])) == 7, "a new quirk may change the number of calls"


SCHEDULES = {
    (count, to_one): NoiseSchedule.scaled_linear(0.00085, 0.012, count, set_alpha_to_one=to_one)
    for count in (2, 37, 1000)
    for to_one in (False, True)
}


@given(data=st.data(), family=st.sampled_from(FAMILIES), key=st.sampled_from(sorted(SCHEDULES)))
def test_calls_that_the_record_counts_are_those_of_the_plan(data: st.DataObject, family: Family, key: Any) -> None:
    count, to_one = key
    most = RELEASED[family].most_steps(count)
    steps = data.draw(st.one_of(st.integers(1, min(12, most)), st.integers(1, most)))
    active_steps = data.draw(st.none() | st.tuples(st.integers(0, steps + 2), st.integers(0, steps + 2)))
    zz = data.draw(st.none() | st.integers(1, steps + 2))
    sampler = SamplerSettings(name="official", active_steps=active_steps, zz=zz)
    spacing = Spacing(num_train_timesteps=count, set_alpha_to_one=to_one)
    read = None if family == "modelscope" else zz
    plan = official_plan(family, SCHEDULES[key], steps, interval=active_steps, zz=read)
    assert network_calls(sampler, steps, spacing, family) == plan.calls


@pytest.mark.parametrize("family", ["animatediff", "videocrafter"])
def test_engine_calls_the_networks_as_often_as_the_record_says(engines: dict[str, Engine], family: str) -> None:
    engine, called = engines[family], {"image": 0, "video": 0}
    models = engine.models

    def count(name: str) -> None:
        called[name] += 1

    hooks = [
        unet.register_forward_pre_hook(lambda *_, name=name: count(name))
        for name, unet in (("image", models.image_unet), ("video", models.video_unet))
    ]
    try:
        made = resolve(engine, {"num_frames": 1, "num_inference_steps": 5}, zz=2, active_steps=[1, 4])
        engine.sample(made)
    finally:
        for hook in hooks:
            hook.remove()
    assert called == made.network_calls


# -- seeds and checkpoints -------------------------------------------------------------------------------------------


def test_solver_that_draws_noise_gives_the_same_clip_for_a_seed_also_resumed_after_any_step(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    engine, files = engines["videocrafter"], list[Path]()

    def keep(checkpoint: Checkpoint) -> None:
        files.append(tmp_path / str(checkpoint.step))
        checkpoint.write(files[-1])

    made = resolve(engine, {"num_inference_steps": 4})
    clip = engine.generate(made, on_step=keep).frames
    assert torch.equal(engine.generate(made).frames, clip)
    for done, file in enumerate(files, 1):
        steps: list[int] = []
        resumed = engine.generate(made, on_step=lambda c, steps=steps: steps.append(c.step), resume=file)
        assert torch.equal(resumed.frames, clip)
        assert steps == list(range(done + 1, 5))
    other = engine.generate(made.model_copy(update={"seed": 4})).frames
    assert not torch.equal(other, clip)


def test_noise_of_the_solver_comes_from_the_runs_generator(engines: dict[str, Engine], tmp_path: Path) -> None:
    """A checkpoint whose generator is in another state gives another clip."""
    engine, files = engines["videocrafter"], list[Path]()
    made = resolve(engine, {"num_inference_steps": 3})  # its last step draws none

    def keep(checkpoint: Checkpoint) -> None:
        files.append(tmp_path / str(checkpoint.step))
        replace(checkpoint, rng=Generator().manual_seed(99).get_state()).write(files[-1])

    clip = engine.sample(made, on_step=keep).latents
    assert not torch.equal(engine.sample(made, resume=files[0]).latents, clip)
