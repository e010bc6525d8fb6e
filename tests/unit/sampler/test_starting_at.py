"""Plans that begin in the middle, at a clip that is noised to the level of their first step."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Generator, Tensor

from sampler import (
    ImageDenoiser,
    IncompatibleInputs,
    InvalidSetting,
    MultistepMove,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    noised,
    official_plan,
    sample,
    seeded_noise,
    zigzag_plan,
)
from tests.unit.sampler.networks import Smooth, texts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SD = NoiseSchedule.from_config({**BETAS, "timestep_spacing": "trailing", "set_alpha_to_one": True})
LINEAR = NoiseSchedule.linear(0.00085, 0.012, set_alpha_to_one=True)
STEPS = 6
CLIP, NOISE = (seeded_noise((1, 4, 3, 4, 5), seed) for seed in (1, 2))


def combinations() -> list[tuple[str, str]]:
    """Every combination with every order that it has."""
    found: list[tuple[str, str]] = []
    for width in (1, 2):
        for back, forth in product(product("IVR", repeat=width), product("IV", repeat=width)):
            orders = ["goback_first"] if "R" in back else ["goback_first", "denoise_first"]
            found += [(f"{''.join(back)}-{''.join(forth)}", order) for order in orders]
    return found


def plans() -> dict[str, Plan]:
    mixed: Any = mixed_plan
    return {
        "ddim": ddim_plan(SD, STEPS),
        "ddim image": ddim_plan(LINEAR, STEPS, model="image"),
        "ddim diffusers": ddim_plan(replace(SD, timestep_spacing="leading"), STEPS, grid="diffusers"),
        "dpmpp-2m": ddim_plan(SD, STEPS, solver="dpmpp-2m"),
        "lcm": ddim_plan(SD, STEPS, solver="lcm"),
        "z-sampling": zigzag_plan(SD, STEPS),
        "fused": fused_plan(SD, STEPS, interval=(0.2, 0.8), image_schedule=LINEAR),
        **{f"{c} {o}": mixed(SD, STEPS, combination=c, order=o, image_schedule=LINEAR) for c, o in combinations()},
        "every second": mixed_plan(SD, STEPS, image_every=2, interval=(0.3, 1)),
        "mixed 2m": mixed_plan(SD, STEPS, solver="dpmpp-2m"),
        "mixed 2m goback first": mixed_plan(SD, STEPS, solver="dpmpp-2m", order="goback_first"),
    }


PLANS = plans()


def knows(_x: Tensor, _timestep: int, _alpha: float, _guidance: float, *, uncond: float = 1.0) -> Tensor:
    """A network that knows the noise: right only for latents that are exactly at the level of the call."""
    return uncond * NOISE


def last(plan: Plan, x: Tensor, **settings: Any) -> Tensor:
    networks = {
        "image": ImageDenoiser(Smooth(-0.4), *texts()),
        "video": VideoDenoiser(Smooth(0.2, mixing=True), *texts()),
    }
    return [*sample(x, plan, generator=Generator().manual_seed(3), **{**networks, **settings})][-1].latents


@pytest.mark.parametrize("name", PLANS)
def test_every_step_begins_at_the_level_of_its_ordinary_step(name: str) -> None:
    whole = PLANS[name]
    levels = [whole.starting_at(step).first_alpha for step in range(STEPS)]
    assert levels == [moves[-1].src for moves in whole]


@pytest.mark.parametrize("name", [name for name in PLANS if "R" not in name and name != "lcm"])
def test_from_every_step_a_network_that_knows_the_noise_gives_the_clip_back(name: str) -> None:
    """With the right noise and any guidance, zig-zags and both solvers stay between clip and noise."""
    for step in (0, 2, STEPS - 1):
        plan = PLANS[name].starting_at(step)
        assert len(plan) == STEPS - step
        ended = last(plan, noised(CLIP, plan, noise=NOISE), image=knows, video=knows)
        torch.testing.assert_close(ended, CLIP, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in PLANS if "2m" not in name])
def test_the_steps_that_run_are_those_of_the_whole_plan(name: str) -> None:
    whole, step = PLANS[name], 3
    assert whole.starting_at(step).steps == whole.steps[step:]
    assert whole.starting_at(0) == whole
    assert whole.starting_at(1).starting_at(2) == whole.starting_at(step)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("steps", "step"), [(6, 0), (6, 1), (6, 5), (20, 8)])
def test_second_order_solver_that_begins_in_the_middle_equals_diffusers(steps: int, step: int, guidance: float) -> None:
    """With its first step of first order, and the last one as in the whole run: the length of that decides."""
    schedule = replace(SD, set_alpha_to_one=False)
    timesteps = schedule.timesteps(steps)
    betas = {key: value for key, value in BETAS.items() if key != "clip_sample"}
    theirs = DPMSolverMultistepScheduler(trained_betas=None, **betas, final_sigmas_type="sigma_min")
    theirs.set_timesteps(timesteps=list(timesteps))
    theirs.set_begin_index(step)
    network, (cond, uncond) = Smooth(0.2, mixing=True), texts()
    x = theirs.add_noise(CLIP, NOISE, torch.tensor([timesteps[step]]))
    plan = ddim_plan(schedule, steps, guidance=guidance, solver="dpmpp-2m").starting_at(step)
    begin = noised(CLIP, plan, noise=NOISE)
    assert (begin - x).abs().max() <= 1e-5
    for t in timesteps[step:]:
        without = network(x, t, uncond)
        x = theirs.step(without + guidance * (network(x, t, cond) - without), t, x).prev_sample
    assert (last(plan, begin) - x).abs().max() <= 1e-5 * x.abs().max()


def test_ordinary_steps_of_a_mixed_run_begin_with_one_of_first_order() -> None:
    plan = mixed_plan(SD, 20, solver="dpmpp-2m", interval=(0.4, 1)).starting_at(3)
    moves = [moves[-1] for moves in plan]
    assert all(isinstance(move, MultistepMove) for move in moves)
    assert moves[0].before is None
    assert [move.before for move in moves[1:-1]] == [move.src for move in moves[:-2]]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_noised_clips_are_those_of_diffusers(spacing: Any, prediction: Any) -> None:
    config = {**BETAS, "timestep_spacing": spacing, "steps_offset": 1, "prediction_type": prediction}
    schedule, theirs = NoiseSchedule.from_config(config), DDIMScheduler.from_config(config)
    theirs.set_timesteps(STEPS)
    for make in (ddim_plan, mixed_plan, zigzag_plan, fused_plan):
        for step in range(STEPS):
            found = noised(CLIP, make(schedule, STEPS).starting_at(step), noise=NOISE)
            assert (found - theirs.add_noise(CLIP, NOISE, theirs.timesteps[step : step + 1])).abs().max() <= 1e-6


def test_noise_is_drawn_from_the_generator_and_computed_in_float32() -> None:
    plan = ddim_plan(SD, STEPS).starting_at(2)
    drawn = torch.randn(CLIP.shape, generator=Generator().manual_seed(5))
    found = noised(CLIP.half(), plan, generator=Generator().manual_seed(5))
    assert torch.equal(found, noised(CLIP.half().float(), plan, noise=drawn))


def test_plan_that_makes_its_own_noise_cannot_begin_at_a_clip() -> None:
    for plan, way_out in (
        *((official_plan(family, SD, STEPS), "use mixed_plan") for family in ("animatediff", "modelscope")),
        (official_plan("videocrafter", SD, STEPS), "use mixed_plan"),
        (free_init_plan(ddim_plan(SD, STEPS), SD, 2), "leave FreeInit out"),
    ):
        with pytest.raises(InvalidSetting, match=way_out):
            plan.starting_at(0)
        with pytest.raises(InvalidSetting, match=way_out):
            noised(CLIP, plan)
    with pytest.raises(InvalidSetting, match="lacks its first 2 steps; FreeInit makes start noise"):
        free_init_plan(ddim_plan(SD, STEPS).starting_at(2), SD)
    for empty in (Plan(()), Plan(((),))):
        with pytest.raises(InvalidSetting, match="begins at no noise level"):
            noised(CLIP, empty)


@pytest.mark.parametrize("step", [-1, STEPS, 1.0, True, None, "1"])
def test_step_outside_the_plan_is_refused(step: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"step=.* must be a whole number in 0..5"):
        ddim_plan(SD, STEPS).starting_at(step)


@pytest.mark.parametrize(("clip", "noise"), [(CLIP[0], None), (CLIP, NOISE[:, :, :1]), (CLIP, NOISE[0])])
def test_clip_and_noise_of_other_shapes_are_refused(clip: Tensor, noise: Tensor | None) -> None:
    with pytest.raises(IncompatibleInputs, match="batch, channels, frames"):
        noised(clip, ddim_plan(SD, STEPS), noise=noise)


def test_fingerprint_of_a_plan_does_not_know_how_it_was_made() -> None:
    plan = ddim_plan(SD, 2)
    assert repr(official_plan("modelscope", SD, 2)).startswith("Plan(steps=((Move(")
    assert repr(plan.starting_at(1)) == f"Plan(steps={plan.steps[1:]!r})"
