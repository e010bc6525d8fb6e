"""DPM-Solver++ 2M in plain runs and in the ordinary steps of mixed ones, against diffusers' scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from sampler import (
    ImageDenoiser,
    InvalidSetting,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Smooth, texts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE = seeded_noise((2, 4, 3, 4, 5), [1, 2])
VIDEO, IMAGE = Smooth(0.2, mixing=True), Smooth(-0.4)


def schedule(spacing: str = "trailing", *, to_one: bool = False, **settings: Any) -> NoiseSchedule:
    return NoiseSchedule.from_config(
        {**BETAS, "timestep_spacing": spacing, "set_alpha_to_one": to_one, "clip_sample": False, **settings}
    )


def solver_of(schedule: NoiseSchedule, timesteps: tuple[int, ...], **settings: Any) -> Any:  # untyped library
    final = "zero" if schedule.set_alpha_to_one else "sigma_min"
    solver = DPMSolverMultistepScheduler(
        trained_betas=None, **BETAS, final_sigmas_type=final, prediction_type=schedule.prediction_type, **settings
    )
    solver.set_timesteps(timesteps=list(timesteps))
    return solver


def guided(network: Smooth, x: Tensor, timestep: int, guidance: float) -> Tensor:
    cond, uncond = texts(len(x))
    without = network(x, timestep, uncond)
    return without + guidance * (network(x, timestep, cond) - without)


def last(plan: Plan) -> Tensor:
    *_, end = sample(NOISE, plan, image=ImageDenoiser(IMAGE, *texts(2)), video=VideoDenoiser(VIDEO, *texts(2)))
    return end.latents


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 14, 15, 25])
@pytest.mark.parametrize(("spacing", "to_one"), [("trailing", False), ("trailing", True), ("leading", False)])
def test_a_plain_run_equals_diffusers(spacing: str, to_one: bool, steps: int, guidance: float) -> None:
    ours = schedule(spacing, to_one=to_one, steps_offset=1)
    theirs, x = solver_of(ours, ours.timesteps(steps)), NOISE
    for t in ours.timesteps(steps):
        x = theirs.step(guided(VIDEO, x, t, guidance), t, x).prev_sample
    ended = last(ddim_plan(ours, steps, guidance=guidance, solver="dpmpp-2m"))
    assert (ended - x).abs().max() <= 1e-5 * max(1, x.abs().max())


@pytest.mark.parametrize("order", ["denoise_first", "goback_first"])
def test_the_ordinary_steps_of_a_mixed_run_equal_diffusers(order: Any) -> None:
    """diffusers' solver is given what the zig-zag leaves; the zig-zag is that of the same plan with DDIM."""
    ours, steps = schedule(), 16
    plan = mixed_plan(ours, steps, order=order, interval=(0.25, 0.75), solver="dpmpp-2m")
    zigzags = [Plan((moves[:-1],)) for moves in mixed_plan(ours, steps, order=order, interval=(0.25, 0.75))]
    assert [moves[:-1] for moves in plan] == [z.steps[0] for z in zigzags]
    denoisers = {"image": ImageDenoiser(IMAGE, *texts(2)), "video": VideoDenoiser(VIDEO, *texts(2))}
    theirs, x = solver_of(ours, ours.timesteps(steps)), NOISE
    for t, zigzag in zip(ours.timesteps(steps), zigzags, strict=True):
        x = [*sample(x, zigzag, **denoisers)][-1].latents
        x = theirs.step(guided(VIDEO, x, t, 7.5), t, x).prev_sample
    assert (last(plan) - x).abs().max() <= 1e-5 * max(1, x.abs().max())


@pytest.mark.parametrize("model", ["image", "video"])
def test_twice_the_steps_leave_a_quarter_of_the_error(model: Any) -> None:
    """DDIM's error halves. The reference is the same equation in very many steps."""
    exact = last(ddim_plan(schedule(), 1000, guidance=1, model=model))

    def error(steps: int, solver: Any) -> float:
        return float((last(ddim_plan(schedule(), steps, guidance=1, model=model, solver=solver)) - exact).abs().max())

    assert error(20, "dpmpp-2m") < 0.25 * error(20, "ddim")
    assert error(40, "dpmpp-2m") < 0.4 * error(20, "dpmpp-2m")


@pytest.mark.parametrize("make", [ddim_plan, mixed_plan])
def test_resumed_run_gives_the_same_bytes_and_needs_the_last_x0(make: Any) -> None:
    plan = make(schedule(), 6, solver="dpmpp-2m")
    denoisers = {"image": ImageDenoiser(IMAGE, *texts(2)), "video": VideoDenoiser(VIDEO, *texts(2))}
    states = [*sample(NOISE, plan, **denoisers)]
    for state in states[:-1]:
        assert set(state.memory) == {"x0"}
        *_, end = sample(state.latents, plan, **denoisers, start=state.index + 1, memory=state.memory)
        assert torch.equal(end.latents, states[-1].latents)


def test_the_calls_are_those_of_ddim_and_the_table_shows_the_solver() -> None:
    ours = schedule()
    assert mixed_plan(ours, 10, solver="dpmpp-2m").calls == mixed_plan(ours, 10).calls
    row = str(ddim_plan(ours, 4, guidance=1.5, solver="dpmpp-2m")).splitlines()[1]
    assert row.split() == ["0-3", "4", "V", "M_V", "+1.5", "1", "V"]


@pytest.mark.parametrize("make", [ddim_plan, mixed_plan])
def test_unknown_solver_is_named_with_those_that_exist(make: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"solver='unipc' is not supported; use one of 'ddim', 'dpmpp-2m'"):
        make(schedule(), 4, solver="unipc")


def test_the_grid_of_diffusers_ddim_has_no_other_solver() -> None:
    with pytest.raises(InvalidSetting, match=r"solver='dpmpp-2m' does not work with grid='diffusers'"):
        ddim_plan(schedule(), 4, grid="diffusers", solver="dpmpp-2m")
