"""Whole runs of flow models and of zero terminal SNR: against the schedulers of diffusers, and where they converge."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from sampler import FlowSchedule, MultistepMove, NoiseSchedule, Plan, ddim_plan, fused_plan, mixed_plan, sample
from sampler.prediction import alpha_at, signal_and_noise
from tests.tiny_video_transformers import COGVIDEOX_SCHEDULER
from tests.unit.sampler.mixture import (
    CLIPS,
    NOISE,
    ONES,
    Mixture,
    as_flow,
    distance,
    image,
    last,
    of_betas,
    rms,
    video,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_an_empty_interval_equals_flow_match_euler(shift: float) -> None:
    """Step by step 1e-6, over 50 steps 5e-6, in the latents of the flow; and plain runs bit for bit."""
    terminal, steps, guidance = 0.02 if shift == 8 else None, 50, 5.0
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=terminal)
    theirs.set_timesteps(steps)
    ours = FlowSchedule.from_config(theirs.config)
    plan = mixed_plan(ours, steps, interval=(0, 0), guidance=guidance)
    network = Mixture("flow")
    x = NOISE.clone()
    run = sample(NOISE, plan, video=video(network))
    plain = sample(NOISE, ddim_plan(ours, steps, guidance=guidance), video=video(network))
    for i, (step, same) in enumerate(zip(run, plain, strict=True)):
        assert torch.equal(step.latents, same.latents)
        t, s, s_next = theirs.timesteps[i], *theirs.sigmas[i : i + 2].tolist()
        alone = last(Plan((plan.steps[i],)), x * sum(signal_and_noise(alpha_at(s))), video=video(network))
        cond, uncond = (network(x, t, encoder_hidden_states=text) for text in (ONES, 0 * ONES))
        x = theirs.step(uncond + guidance * (cond - uncond), t, x).prev_sample
        assert distance(as_flow(alone, alpha_at(s_next)), x) <= 1e-6
        assert distance(as_flow(step.latents, alpha_at(s_next)), x) <= 5e-6


def test_cogvideox_from_zero_signal_equals_its_scheduler() -> None:
    theirs = CogVideoXDDIMScheduler.from_config(COGVIDEOX_SCHEDULER)
    theirs.set_timesteps(50)
    ours = NoiseSchedule.from_config(COGVIDEOX_SCHEDULER)
    assert list(ours.alphas_cumprod) == theirs.alphas_cumprod.tolist()
    assert ours.alphas_cumprod[-1] == 0
    plan = ddim_plan(ours, 50, guidance=1)
    assert [move.timestep for (move,) in plan] == theirs.timesteps.tolist()  # type: ignore[union-attr]
    network, x = Mixture("v_prediction", of_betas(ours)), NOISE.clone()
    for i, t in enumerate(theirs.timesteps):
        one = last(Plan((plan.steps[i],)), x, video=video(network))
        x = theirs.step(network(x, t, encoder_hidden_states=ONES), t, x)[0]
        assert distance(one, x) <= 1e-6
    assert distance(last(plan, video=video(network)), x) <= 5e-6


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("spacing", ["dpmsolver", "unipc"])
def test_the_multistep_solver_of_a_flow_equals_diffusers(steps: int, spacing: Any) -> None:
    """DPMSolverMultistepScheduler with use_flow_sigmas; on UniPC's levels, too, which begin at s = 1."""
    config = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    theirs = DPMSolverMultistepScheduler(**config)
    theirs.set_timesteps(steps)
    ours = FlowSchedule(3.0, spacing)
    theirs.sigmas = torch.tensor([*ours.sigmas(steps), 0.0])
    plan = ddim_plan(ours, steps, guidance=3.0, solver="dpmpp-2m")
    network, first = Mixture("flow"), ours.levels(steps)[0].alpha
    x = as_flow(NOISE, first)
    for i, t in enumerate(theirs.timesteps):
        time = 1000 * float(theirs.sigmas[i])  # diffusers cuts off the fraction of its timesteps
        cond, uncond = (network(x, time, encoder_hidden_states=text) for text in (ONES, 0 * ONES))
        x = theirs.step(uncond + 3 * (cond - uncond), t, x).prev_sample
    assert distance(last(plan, video=video(network)), x) <= 1e-5 * max(1, x.abs().max())


def test_the_multistep_solver_needs_fewer_steps_than_euler() -> None:
    """As UniPC, which Wan's own pipeline uses."""
    schedule, network = FlowSchedule(3.0, "uniform"), Mixture("flow")
    exact = last(ddim_plan(schedule, 400, guidance=1, solver="dpmpp-2m"), video=video(network))
    euler, solver = (
        last(ddim_plan(schedule, 25, guidance=1, solver=s), video=video(network)) for s in ("ddim", "dpmpp-2m")
    )
    assert rms(solver, exact) < 0.4 * rms(euler, exact)
    assert isinstance(ddim_plan(schedule, 25, solver="dpmpp-2m").steps[3][0], MultistepMove)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_stable_diffusion_with_zero_terminal_snr_equals_diffusers(spacing: str) -> None:
    """Networks that predict v, trained or tuned for it (arXiv:2305.08891)."""
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": spacing,
        "clip_sample": False,
    }
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(20)
    ours = NoiseSchedule.from_config(theirs.config)
    assert list(ours.alphas_cumprod) == theirs.alphas_cumprod.tolist()
    plan = ddim_plan(ours, 20, guidance=1, grid="diffusers")
    assert plan.first_alpha == 0
    network, x = Mixture("v_prediction", of_betas(ours)), NOISE.clone()
    for index, t in enumerate(theirs.timesteps):  # step by step: next to a border of two means, rounding grows
        step = next(iter(sample(x, plan, video=video(network), start=index)))
        x = theirs.step(network(x, t, encoder_hidden_states=ONES), t, x).prev_sample
        torch.testing.assert_close(step.latents, x, atol=2e-6, rtol=2e-6)
    for other in (mixed_plan(ours, 6), ddim_plan(ours, 6, solver="dpmpp-2m"), fused_plan(ours, 6)):
        assert last(other, video=video(network), image=image(network)).isfinite().all()


def ode(networks: dict[Mixture, tuple[float, float]], steps: int) -> Tensor:
    """The probability flow along sum of (weight of uncond, of cond - uncond), by Heun's method, in float64."""
    x = NOISE.double().reshape(CLIPS, 2)

    def velocity(x: Tensor, s: float) -> Tensor:
        total = torch.zeros_like(x)
        for network, (of_uncond, of_difference) in networks.items():
            uncond, cond = (network.predict(x, 1 - s, s, which) for which in (0, 1))
            total = total + of_uncond * uncond + of_difference * (cond - uncond)
        return total

    grid = [3 * u / (1 + 2 * u) for u in (1 - i / steps for i in range(steps + 1))]
    for s, t in itertools.pairwise(grid):
        k = velocity(x, s)
        x = x + (t - s) * (k + velocity(x + (t - s) * k, t)) / 2
    return x.reshape(NOISE.shape).float()


@pytest.fixture(scope="module")
def pair() -> tuple[Mixture, Mixture]:
    return Mixture("flow"), Mixture("flow", shift=(0.2, -0.3))


SCALES: dict[str, Any] = {"guidance": 1.5, "image_guidance": 0.5, "video_guidance": 0.5}


def order_of(pair: tuple[Mixture, Mixture], steps: int, truth: Tensor, *, mixed: bool) -> float:
    """How many times the error halves where the steps double."""

    def error(steps: int) -> float:
        schedule = FlowSchedule(3.0, "uniform")
        plan = mixed_plan(schedule, steps, **SCALES) if mixed else ddim_plan(schedule, steps, guidance=1.5)
        end = last(plan, video=video(pair[0]), image=image(pair[1]))
        return float((end - truth).pow(2).mean((1, 2, 3, 4)).sqrt().median())

    return math.log2(error(steps) / error(2 * steps))


@pytest.mark.parametrize(
    ("mixed", "steps", "least"),
    [
        (False, 25, 0.9),
        (True, 25, 0.5),
        pytest.param(False, 200, 0.95, marks=pytest.mark.slow),
        pytest.param(True, 200, 0.9, marks=pytest.mark.slow),
    ],
)
def test_runs_converge_to_the_flow_that_their_guidance_adds_up_to(
    pair: tuple[Mixture, Mixture], mixed: bool, steps: int, least: float
) -> None:
    """A zig-zag applies the guidance of each model twice. To first order: twice the steps leave half of the error."""
    v, i = pair
    truth = ode({v: (1, 2.5), i: (0, 1.0)} if mixed else {v: (1, 1.5)}, 10 * steps)
    assert least < order_of(pair, steps, truth, mixed=mixed) < 1.15


def test_a_fused_run_is_near_the_same_flow(pair: tuple[Mixture, Mixture]) -> None:
    v, i = pair
    truth = ode({v: (1, 2.5), i: (0, 1.0)}, 200)
    found = last(fused_plan(FlowSchedule(3.0, "uniform"), 60, **SCALES), video=video(v), image=image(i))
    plain = last(ddim_plan(FlowSchedule(3.0, "uniform"), 60, guidance=1.5), video=video(v))
    assert rms(found, truth) < 0.3 * rms(plain, truth)
