from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampler import InvalidSetting, NoiseSchedule, Plan, Step, seeded_noise
from service.jobs.model import Phase
from service.jobs.reference import Reference
from service.jobs.request import VideoRequest
from service.jobs.sampler_settings import USES, SamplerSettings
from service.jobs.timestep_spacing import Spacing
from tests.factories import make_generation
from worker.child.engine import Engine

STEPS = 4
FEW = 2  # frames: most costs grow with their number


def test_same_seed_gives_the_same_frames_and_another_seed_others(engine: Engine) -> None:
    first, second, other = (
        engine.generate(make_generation(num_inference_steps=2, seed=seed)).frames for seed in (7, 7, 8)
    )
    assert first.shape == (8, 384, 384, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_progress_is_reported_phase_by_phase_and_step_by_step(engine: Engine) -> None:
    reported: list[tuple[Phase, int, int]] = []
    clip = engine.generate(
        make_generation(num_frames=FEW, num_inference_steps=STEPS), lambda *progress: reported.append(progress)
    )
    sampling = [(Phase.SAMPLING, i, STEPS) for i in range(STEPS + 1)]
    assert reported == [(Phase.ENCODING, 0, STEPS), *sampling, (Phase.DECODING, STEPS, STEPS)]
    assert set(clip.timings) == {Phase.ENCODING, Phase.SAMPLING, Phase.DECODING}
    assert all(seconds > 0 for seconds in clip.timings.values())


def test_raising_in_progress_stops_the_work_at_that_step(engine: Engine) -> None:
    class Enough(Exception):
        pass

    seen: list[int] = []

    def stop_after_two(phase: Phase, step: int, _total: int) -> None:
        seen.append(step)
        if phase is Phase.SAMPLING and step == 2:
            raise Enough

    with pytest.raises(Enough):
        engine.generate(make_generation(num_frames=FEW, num_inference_steps=STEPS), stop_after_two)
    assert seen[-1] == 2


def test_warm_up_calls_all_networks_once_or_more_and_decodes(engine: Engine) -> None:
    models = engine.models
    called: list[str] = []
    parts = {"image": models.image_unet, "video": models.video_unet, "decoder": models.vae.decoder}
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, part in parts.items()]
    try:
        engine.warm_up(models.entry.default_generation)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(called) == {"image", "video", "decoder"}
    assert called.count("image") + called.count("video") == 5, "one step of the paper's method, not a whole run"


def test_request_decides_the_plan(engine: Engine) -> None:
    plain = engine.plan(make_generation(sampler=SamplerSettings(name="ddim")))
    mixed = engine.plan(make_generation(sampler=SamplerSettings(interval=(0.5, 1.0), combination="VI-VI")))
    frames = engine.plan(make_generation(sampler=SamplerSettings(name="ddim", network="image"), guidance_scale=1.5))
    assert plain.calls == {"image": 0, "video": 20}
    assert frames.calls == {"image": 20, "video": 0}
    assert {move.guidance for (move,) in frames} == {1.5}
    # ten active steps but the last, which has no room for a zig-zag
    assert mixed.calls == {"image": 18, "video": 38}
    assert [m.model for m in mixed.steps[12]] == ["video", "image", "video", "image", "video"]
    assert mixed.steps[12][-1].guidance == 4.0


COMBINATIONS = [
    f"{''.join(goback)}-{''.join(denoise)}"
    for width in (1, 2)
    for goback in product("IVR", repeat=width)
    for denoise in product("IV", repeat=width)
]
SHARES = st.floats(0, 1)
GUIDANCE = st.tuples(st.floats(0, 20), st.floats(0, 20))
SPACINGS = st.builds(
    Spacing,
    timestep_spacing=st.sampled_from(["linspace", "leading", "trailing"]),
    steps_offset=st.integers(0, 2),
    set_alpha_to_one=st.booleans(),
)


@st.composite
def samplers(draw: st.DrawFn) -> SamplerSettings:
    combination = draw(st.sampled_from(COMBINATIONS))
    orders = ["goback_first"] if "R" in combination else ["goback_first", "denoise_first"]
    grid = draw(st.sampled_from(["adjacent", "diffusers"]))
    return SamplerSettings(
        name=draw(st.sampled_from(sorted(USES))),
        combination=combination,
        order=draw(st.sampled_from(orders)),
        interval=tuple(sorted((draw(SHARES), draw(SHARES)))),
        image_guidance=draw(GUIDANCE),
        video_guidance=draw(GUIDANCE),
        rho=draw(st.floats(0.1, 10)),
        image_every=draw(st.integers(1, 7)),
        interval_guidance=draw(st.none() | st.floats(0, 20)),
        goback_guidance=draw(st.floats(0, 20)),
        iterations=draw(st.integers(1, 4)),
        network=draw(st.sampled_from(["image", "video"])),
        grid=grid,
        solver=draw(st.sampled_from(["ddim", "dpmpp-2m"])) if grid == "adjacent" else "ddim",
        guidance_rule=draw(st.sampled_from(["cfg", "apg", "cfg-zero"])),
        apg_momentum=draw(st.floats(-0.9, 0.9)),
        zero_init_steps=draw(st.integers(0, 3)),
        image_interval=tuple(sorted((draw(SHARES), draw(SHARES)))),
        enlarge=draw(st.none() | st.floats(1, 4)),
        image_step_guidance=draw(st.none() | st.floats(0, 20)),
    )


STRENGTHS = st.none() | st.floats(0.001, 1)


@given(
    sampler=samplers(), steps=st.one_of(st.integers(1, 12), st.integers(1, 1000)), spacing=SPACINGS, strength=STRENGTHS
)
def test_every_setting_that_the_api_accepts_can_be_planned_and_costs_what_the_record_says(
    loaded_engine: Engine, sampler: SamplerSettings, steps: int, spacing: Spacing, strength: float | None
) -> None:
    sampler = sampler.model_copy(update={"zero_init_steps": min(sampler.zero_init_steps, steps - 1)})
    sampler = sampler.with_evs_defaults(None, 2.0)  # as every request's is
    generation = make_generation(sampler=sampler, num_inference_steps=steps, spacing=spacing)
    if strength and sampler.name not in ("official", "freeinit") and int(steps * strength):
        reference = Reference(sha256="0" * 64, media_type="image/png", strength=strength)
        generation = generation.model_copy(update={"reference": reference})
    plan = loaded_engine.plan(generation)
    assert plan.calls == generation.network_calls
    assert len(plan) == generation.total_steps


SAMPLERS = [
    (name, combination)
    for name in sorted(USES)
    for combination in (COMBINATIONS if "combination" in USES[name] else ["IV-IV"])
]


@pytest.mark.parametrize(("name", "combination"), SAMPLERS)
def test_every_sampler_and_combination_costs_what_the_record_says(engine: Engine, name: str, combination: str) -> None:
    sampler = SamplerSettings.model_validate({"name": name, "combination": combination, "order": "goback_first"})
    for steps in (1, 2, 3, 7):
        generation = make_generation(sampler=sampler, num_inference_steps=steps)
        assert engine.plan(generation).calls == generation.network_calls


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": {"name": "official"}}, "use mixed_plan"),
        ({"sampler": {"name": "freeinit"}}, "leave FreeInit out"),
        ({"num_inference_steps": 3}, "strength=0.3: none of 3 steps would run; raise it to 0.34"),
    ],
)
def test_run_that_cannot_begin_at_a_reference_is_refused(engine: Engine, fields: dict[str, Any], message: str) -> None:
    """The API refuses these; a worker of another version may still get them."""
    reference = Reference(sha256="0" * 64, media_type="image/png", strength=0.3)
    with pytest.raises(InvalidSetting, match=message):
        engine.plan(make_generation(reference=reference, **fields))


def test_image_network_alone_runs_on_its_own_schedule(engine: Engine) -> None:
    """As the image model's own pipeline would; levels and prediction type may differ from the video model's."""
    own = NoiseSchedule.linear(0.0001, 0.02, timestep_spacing="linspace")
    engine.models = replace(engine.models, image_schedule=own)
    generation = make_generation(sampler=SamplerSettings(name="ddim", network="image"), num_inference_steps=5)
    plan = engine.plan(generation.model_copy(update={"spacing": Spacing(timestep_spacing="trailing")}))
    assert [(move.timestep, move.src) for (move,) in plan] == [
        (t, own.alphas_cumprod[t]) for t in (999, 799, 599, 399, 199)
    ]


def test_steps_of_a_run_are_those_that_are_counted(engine: Engine) -> None:
    for timestep_spacing in ("linspace", "leading", "trailing"):
        for steps in (*range(1, 60), 333, 999, 1000):
            spacing = Spacing(timestep_spacing=timestep_spacing)
            schedule = replace(engine.models.video_schedule, timestep_spacing=timestep_spacing, steps_offset=1)
            assert tuple(spacing.timesteps(steps)) == schedule.timesteps(steps)


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "freeinit", "iterations": 2},
        {"combination": "R-I", "order": "goback_first"},
        {"name": "zigzag"},
        {"name": "ddim", "network": "image"},
        {"name": "fused", "image_guidance": (0.5, 0.5), "video_guidance": (0.5, 0.5)},
        {"name": "evs", "enlarge": 2},
        {"name": "ddim", "guidance_rule": "apg"},
        {"interval": (0.5, 1), "guidance_rule": "cfg-zero"},
    ],
    ids=str,
)
def test_every_sampler_draws_a_clip_that_its_seed_decides(engine: Engine, sampler: dict[str, object]) -> None:
    def frames(seed: int) -> torch.Tensor:
        settings = SamplerSettings.model_validate(sampler)
        return engine.generate(
            make_generation(num_frames=FEW, num_inference_steps=3, seed=seed, sampler=settings)
        ).frames

    first, again, other = (frames(seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("later", [{"solver": "dpmpp-2m"}, {"guidance_rule": "apg"}])
def test_a_warm_up_in_the_middle_of_a_plan_needs_no_memory(engine: Engine, later: dict[str, object]) -> None:
    sampler = SamplerSettings.model_validate({"interval": (0.5, 1), **later})
    engine.warm_up(make_generation(num_inference_steps=6, sampler=sampler))


def test_run_starts_from_the_seeds_noise_and_draws_other_noise_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeInit mixes in fresh noise: a second generator of the same seed would give it the start noise once more."""
    seen: list[torch.Tensor] = []

    def spy(latents: torch.Tensor, plan: Plan, *, generator: torch.Generator, **models: object) -> Iterator[Step]:
        seen.extend((latents, torch.randn(latents.shape, generator=generator)))
        return iter(())

    monkeypatch.setattr("worker.child.engine.sample", spy)
    engine.generate(make_generation(seed=7))
    start, later = seen
    assert torch.equal(start, seeded_noise(start.shape, 7))
    assert not torch.equal(later, start)


def test_prompt_decides_the_video(engine: Engine) -> None:
    """With the demo entry's own guidance: the paper's guidance of 4 is too much for models this small."""
    resolve, background = engine.models.entry.resolve, "a black background"
    red, blue = (
        engine.generate(
            resolve(VideoRequest(prompt=f"a {color} circle moving left on {background}", seed=7, num_inference_steps=6))
        )
        for color in ("red", "blue")
    )
    middle = [clip.frames[:, 96:288, 96:288].float().mean((0, 1, 2)) for clip in (red, blue)]
    assert middle[0][0] > middle[1][0] + 10  # more red in one
    assert middle[1][2] > middle[0][2] + 10  # more blue in the other


def test_text_that_the_encoder_cannot_read_whole_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the text encoder takes 16"):
        engine.models.encode("a red circle " * 10)


def test_words_that_differ_are_read_differently(engine: Engine) -> None:
    """A text encoder that lets "left" and "right" collapse cannot steer motion."""

    def distance(a: str, b: str) -> float:
        return (engine.models.encode(a).video - engine.models.encode(b).video).norm().item()

    assert distance("left", "right") > 0.2 * distance("red", "blue")
