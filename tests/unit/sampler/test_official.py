"""official_plan against a second, independent transcription of the released loops on diffusers' schedulers, with toy
networks. The golden files check the same against the released code itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from sampler import (
    ImageDenoiser,
    InvalidSetting,
    Move,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    official_plan,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Constant, Smooth, texts

# diffusers 0.42 hands torch tensors to numpy 2 the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIG = {**BETAS, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "linspace"}
SD = NoiseSchedule.from_config(CONFIG)
FAMILIES = ("animatediff", "modelscope", "videocrafter")
SHAPE = (1, 4, 3, 4, 4)
IMAGE, VIDEO = Smooth(0.1), Smooth(0.4, mixing=True)


def run(plan: Plan, x: Tensor, image: object, video: object, generator: Generator | None = None) -> Tensor:
    models: dict[str, Any] = {"image": ImageDenoiser(image, *texts()), "video": VideoDenoiser(video, *texts())}
    return list(sample(x, plan, **models, generator=generator))[-1].latents


def transcribed(family: str, x: Tensor, steps: int, zz: int, generator: Generator) -> Tensor:
    """The released loop, line by line."""
    cond, uncond = texts()
    ddim, inverse = DDIMScheduler(**CONFIG), DDIMInverseScheduler(**{**CONFIG, "timestep_spacing": "leading"})
    solver = DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++")
    for scheduler in (ddim, inverse, solver):
        scheduler.set_timesteps(steps)
    outer = solver if family == "videocrafter" else ddim

    def eps_video(x: Tensor, t: int, w: float) -> Tensor:
        u, c = VIDEO(x, t, uncond), VIDEO(x, t, cond)
        return u + w * (c - u)

    def eps_image(x: Tensor, t: int, w: float) -> Tensor:
        u, c = (IMAGE(x[0].transpose(0, 1), t, text).transpose(0, 1)[None] for text in (uncond, cond))
        return u + w * (c - u)

    for i, tensor in enumerate(outer.timesteps):
        t = int(tensor)
        p, q = max(0, t - 1000 // steps), max(0, t - 2 * 1000 // steps)
        first = eps_video if i % zz == zz - 1 else eps_image
        if family == "animatediff":
            x = ddim.step(first(x, p, 4), p, x).prev_sample
            x = ddim.step(eps_video(x, t, 4), t, x).prev_sample
        else:
            x = ddim.step(first(x, t, 4), t, x).prev_sample
            x = ddim.step(eps_video(x, p, 4), p, x).prev_sample
        x = inverse.step(first(x, q, -4), p, x).prev_sample
        x = inverse.step(eps_video(x, p, -4), t, x).prev_sample
        if family == "videocrafter":
            frames, eps = (y[0].transpose(0, 1) for y in (x, eps_video(x, t, 9.0)))
            x = solver.step(eps, tensor, frames, generator=generator).prev_sample.transpose(0, 1)[None]
        else:
            x = ddim.step(eps_video(x, t, 7.5), t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize(("family", "zz"), [("animatediff", 1000), ("animatediff", 3), ("modelscope", None)])
def test_released_loop_equals_its_table_run_on_diffusers_schedulers(family: str, zz: int | None, steps: int) -> None:
    x = seeded_noise(SHAPE, 1)
    expected = transcribed(family, x, steps, zz or 1000, Generator())
    actual = run(official_plan(family, SD, steps, zz=zz), x, IMAGE, VIDEO)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 20, 50])
@pytest.mark.parametrize("zz", [1, 3, 1000])
def test_released_videocrafter_loop_with_its_stochastic_solver(steps: int, zz: int) -> None:
    """14 and fewer steps lower the solver's order at the end, more do not: with a last sigma of 0 both do."""
    x = seeded_noise(SHAPE, 1)
    expected = transcribed("videocrafter", x, steps, zz, Generator().manual_seed(5))
    actual = run(official_plan("videocrafter", SD, steps, zz=zz), x, IMAGE, VIDEO, Generator().manual_seed(5))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_animatediff_step_is_the_table_with_swapped_timesteps() -> None:
    """t = 958, p = 938, q = 918; the two denoising moves have each other's timesteps."""
    moves = official_plan("animatediff", SD, 50).steps[2]
    a = SD.alphas_cumprod
    assert moves == (
        Move("image", 938, a[938], a[918], 4),
        Move("video", 958, a[958], a[938], 4),
        Move("image", 918, a[918], a[938], -4),
        Move("video", 938, a[938], a[958], -4),
        Move("video", 958, a[958], a[938], 7.5),
    )


def test_modelscope_step_is_the_table_with_each_move_at_its_own_timestep() -> None:
    moves = official_plan("modelscope", SD, 50).steps[2]
    a = SD.alphas_cumprod
    assert moves[:2] == (Move("image", 958, a[958], a[938], 4), Move("video", 938, a[938], a[918], 4))
    assert moves[2:] == official_plan("animatediff", SD, 50).steps[2][2:]


@pytest.mark.parametrize(
    ("family", "nominal", "made"),
    [  # linspace timesteps end at 0 and 20, where 7 of 250 calls have no effect
        ("animatediff", {"image": 100, "video": 150}, {"image": 96, "video": 147}),
        ("modelscope", {"image": 100, "video": 150}, {"image": 97, "video": 146}),
        ("videocrafter", {"image": 68, "video": 182}, {"image": 67, "video": 181}),  # zz = 3
    ],
)
def test_calls_are_those_of_the_released_code_less_the_ones_without_effect(
    family: str, nominal: dict[str, int], made: dict[str, int]
) -> None:
    plan, image, video = official_plan(family, SD, 50), Constant(0.1), Constant(0.2)
    assert (plan.nominal_calls, plan.calls) == (nominal, made)
    run(plan, seeded_noise(SHAPE, 2), image, video)
    assert {"image": len(image.calls), "video": len(video.calls)} == made


def test_videocrafters_last_step_goes_to_the_clean_end_by_the_first_order() -> None:
    moves = [step[-1] for step in official_plan("videocrafter", SD, 6)]
    a, t = SD.alphas_cumprod, (999, 832, 666, 500, 333, 166)
    assert [move.timestep for move in moves] == list(t)
    assert [move.before for move in moves] == [None, a[999], a[832], a[666], a[500], None]
    assert [move.dst for move in moves] == [*(a[k] for k in t[1:]), 1.0]


@given(begin=st.integers(0, 12), end=st.integers(-2, 12), family=st.sampled_from(FAMILIES))
def test_interval_is_inclusive_at_both_ends(begin: int, end: int, family: str) -> None:
    plan = official_plan(family, SD, 10, interval=(begin, end))
    assert [len(step) == 5 for step in plan] == [begin <= i <= end for i in range(10)]


def test_interval_that_ends_before_it_begins_is_the_baseline_bit_for_bit() -> None:
    x = seeded_noise(SHAPE, 3)
    plan = official_plan("modelscope", SD, 10, interval=(5, 4))
    baseline = Plan(tuple(step[-1:] for step in official_plan("modelscope", SD, 10)))
    assert torch.equal(run(plan, x, None, VIDEO), run(baseline, x, None, VIDEO))


def test_zz_replaces_the_image_model_on_every_zzth_step() -> None:
    plan = official_plan("animatediff", SD, 8, zz=2)
    assert ["image" in {m.model for m in step} for step in plan] == [True, False] * 4


def test_the_stand_in_has_the_video_guidance_in_animatediff() -> None:
    step = official_plan("animatediff", SD, 8, zz=2, image_guidance=(1, 1), video_guidance=(3, 3)).steps[1]
    assert [m.guidance for m in step] == [3, 3, -3, -3, 7.5]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: official_plan("sora", SD), "family='sora'.*'videocrafter'"),
        (lambda: official_plan("animatediff", SD, 10, zz=0), "zz=0"),
        (lambda: official_plan("animatediff", SD, 0), "steps=0"),
        (lambda: official_plan("animatediff", SD, 10, guidance=float("nan")), "guidance=nan"),
        (lambda: official_plan("animatediff", SD, 10, rho=0), "rho=0"),
        (lambda: official_plan("modelscope", SD, 10, zz=3), "zz=3.*no such parameter"),
        (lambda: official_plan("modelscope", SD, 10, image_guidance=(6, 2)), "image_guidance.*ignores"),
        (lambda: official_plan("videocrafter", SD, 10, video_guidance=(6, 2)), "video_guidance.*ignores"),
        (lambda: official_plan("videocrafter", SD, 1000), r"steps=1000 must be a whole number in 1\.\.999"),
        (lambda: official_plan("videocrafter", SD, "50"), "steps='50' must be a whole number"),
        (lambda: official_plan("animatediff", SD, interval=3), "interval=3 must be two step indices"),
        (
            lambda: official_plan("animatediff", SD, interval=(0, 9, 3)),
            r"interval=\(0, 9, 3\) must be two step indices",
        ),
        (lambda: official_plan("animatediff", SD, image_guidance="4"), "image_guidance='4' must be one guidance scale"),
        (lambda: official_plan("modelscope", SD, video_guidance=6), "video_guidance=6: the released modelscope code"),
        (lambda: official_plan("animatediff", SD, zz="3"), "zz='3' must be a whole number"),
        (lambda: official_plan("animatediff", SD, guidance="7"), "guidance='7' must be a finite number"),
        (lambda: official_plan(None, SD), "family=None is not supported"),
        (lambda: official_plan("animatediff", CONFIG), r"NoiseSchedule\.from_config"),
    ],
)
def test_bad_setting_names_value_and_way_out(make: Callable[[], Plan], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        make()
