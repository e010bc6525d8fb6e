"""APG and CFG-Zero* against diffusers' guiders, their equations, and plain guidance where they are the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance as Guider
from diffusers.guiders import ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from torch import Tensor

from sampler import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    InvalidSetting,
    Move,
    Plan,
    RuledScale,
    VideoDenoiser,
    ZeroVelocity,
    ddim_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from sampler.guidance_rules import guided_prediction
from tests.unit.sampler.networks import Constant, Smooth, texts
from tests.unit.sampler.plans import SD, SHAPE, last

LEVELS = [SD.alphas_cumprod[t] for t in (0, 400, 999)]
PLAIN = AdaptiveProjectedGuidance(eta=1, norm_threshold=0, momentum=0)


def answers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, and two epsilons for them that are alike, as those of a network are; a batch of two clips."""
    x, common, own = (seeded_noise((2, *SHAPE[1:]), seed + i) for i in range(3))
    return x, common, common + 0.2 * own


def clean(x: Tensor, epsilon: Tensor, alpha: float) -> Tensor:
    return (x - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5


def velocity(x: Tensor, epsilon: Tensor, alpha: float) -> Tensor:
    return epsilon - clean(x, epsilon, alpha)


def as_samples(x: Tensor, by_frame: bool) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1) if by_frame else x


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize("by_frame", [False, True])
@pytest.mark.parametrize(("eta", "threshold", "momentum"), [(0.0, 15.0, -0.5), (0.3, 0.7, 0.4), (1.0, 0.0, 0.0)])
def test_apg_is_that_of_diffusers_on_clean_predictions(
    alpha: float, by_frame: bool, eta: float, threshold: float, momentum: float
) -> None:
    """Three calls one after the other, for the momentum. What a frame may be, a clip may be in the mean square."""
    rule = RuledScale(7.5, AdaptiveProjectedGuidance(eta, threshold, momentum))
    longest = threshold * (1 if by_frame else math.sqrt(SHAPE[2]))
    guider = Guider(6.5, momentum, longest, eta=eta, use_original_formulation=True)
    guider.momentum_buffer = MomentumBuffer(momentum)
    memory: dict[str, Tensor] = {}
    for seed in (50, 60, 70):
        x, uncond, cond = answers(seed)
        found = guided_prediction(rule, x, uncond, cond, alpha, by_frame=by_frame, memory=memory)
        predicted = (as_samples(clean(x, epsilon, alpha), by_frame) for epsilon in (cond, uncond))
        assert_close(as_samples(clean(x, found, alpha), by_frame), guider.forward(*predicted).pred)


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize("by_frame", [False, True])
def test_cfg_zero_star_is_that_of_diffusers_on_velocities(alpha: float, by_frame: bool) -> None:
    x, uncond, cond = answers(80)
    found = guided_prediction(RuledScale(4.5, CfgZeroStar()), x, uncond, cond, alpha, by_frame=by_frame, memory={})
    guider = ClassifierFreeZeroStarGuidance(4.5, zero_init_steps=1)
    guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(0))
    predicted = (as_samples(velocity(x, epsilon, alpha), by_frame) for epsilon in (cond, uncond))
    assert_close(as_samples(velocity(x, found, alpha), by_frame), guider.forward(*predicted).pred)


def test_velocity_is_that_of_the_flow_that_ddim_follows() -> None:
    """z = x / (sqrt(abar) + sqrt(1 - abar)) = (1 - t) x0 + t eps: a DDIM move is one Euler step of dz/dt = u."""
    src, dst = LEVELS[1], LEVELS[0]
    x, epsilon = seeded_noise(SHAPE, 90), torch.full(SHAPE, 0.3)
    moved = last(x, Plan(((Move("video", 500, src, dst, 1.0),),)), None, Constant(0.3))
    width, after = (alpha**0.5 + (1 - alpha) ** 0.5 for alpha in (src, dst))
    t, t_after = (1 - src) ** 0.5 / width, (1 - dst) ** 0.5 / after
    torch.testing.assert_close(moved / after, x / width + (t_after - t) * velocity(x, epsilon, src))


def test_a_zero_step_leaves_the_latents_of_the_flow_where_they_are() -> None:
    """As a network of velocity 0 would: eps = x0."""
    src, dst = LEVELS[2], LEVELS[1]
    x, width = seeded_noise(SHAPE, 91), src**0.5 + (1 - src) ** 0.5

    def still(latents: Tensor, *_: Any) -> Tensor:
        return latents / width

    moved, expected = (
        list(sample(x, Plan(((move,),)), video=still))[-1].latents
        for move in (ZeroVelocity(src, dst), Move("video", 999, src, dst, 1.0))
    )
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(moved / (dst**0.5 + (1 - dst) ** 0.5), x / width)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("model", ["image", "video"])
def test_apg_without_its_changes_is_classifier_free_guidance(model: Any, prediction_type: Any) -> None:
    cond, uncond = texts()
    kinds: dict[str, Any] = {"prediction_type": prediction_type}
    denoiser = VideoDenoiser(Smooth(0.4, mixing=True), cond, uncond, **kinds)
    runs = (
        list(sample(seeded_noise(SHAPE, 92), ddim_plan(SD, 6, model=model, rule=rule), image=denoiser, video=denoiser))
        for rule in (None, PLAIN)
    )
    plain, apg = (run[-1].latents for run in runs)
    assert (apg - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_a_whole_run_is_the_papers_loop() -> None:
    """x0 = D_c + (w - 1) (d - (1 - eta) d_parallel), d limited, with momentum; then DDIM."""
    network, rule = Smooth(0.4, mixing=True), AdaptiveProjectedGuidance(eta=0.2, norm_threshold=3, momentum=-0.6)
    plan = ddim_plan(SD, 5, guidance=4, rule=rule)
    x = seeded_noise(SHAPE, 93)
    found, average = last(x, plan, None, network), torch.zeros(SHAPE)
    for (move,) in plan:
        assert isinstance(move, Move)
        cond, uncond = (clean(x, network(x, move.timestep, text), move.src) for text in texts())
        average = cond - uncond - 0.6 * average
        update = average * min(1.0, 3 * math.sqrt(SHAPE[2]) / average.norm().item())
        parallel = (update * cond).sum() / (cond * cond).sum() * cond
        guided = cond + 3 * (update - 0.8 * parallel)
        epsilon = (x - move.src**0.5 * guided) / (1 - move.src) ** 0.5
        x = move.dst**0.5 * guided + (1 - move.dst) ** 0.5 * epsilon
    assert (found - x).abs().max() <= 1e-5 * x.abs().max()


def test_both_answers_come_from_one_network_call() -> None:
    video = Constant(0.1, 0.3)
    plan = ddim_plan(SD, 6, rule=CfgZeroStar(2))
    last(seeded_noise(SHAPE, 94), plan, None, video)
    assert [shape for shape, _ in video.calls] == [(2, *SHAPE[1:])] * 4
    assert plan.calls == {"image": 0, "video": 4}


def test_a_rule_changes_the_ordinary_steps_only_and_nothing_at_scale_1() -> None:
    rule = AdaptiveProjectedGuidance()
    plain, ruled = (mixed_plan(SD, 6, rule=each) for each in (None, rule))
    assert all(a[:-1] == b[:-1] and a[-1] != b[-1] for a, b in zip(plain, ruled, strict=True))
    assert ddim_plan(SD, 6, guidance=1, rule=rule) == ddim_plan(SD, 6, guidance=1)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_second_order_begins_after_the_zero_steps(solver: Any) -> None:
    plan = ddim_plan(SD, 20, solver=solver, rule=CfgZeroStar(3))
    assert all(isinstance(move, ZeroVelocity) for (move,) in plan.steps[:3])
    assert plan.steps[3][0].coefficients.x0 == 0  # type: ignore[union-attr]
    assert last(seeded_noise(SHAPE, 95), plan, None, Smooth(0.1)).isfinite().all()


def test_the_grid_of_diffusers_takes_a_rule_too() -> None:
    plan = ddim_plan(SD, 10, grid="diffusers", rule=CfgZeroStar(1))
    assert plan.calls["video"] == 9
    assert plan.steps[0][0].dst == plan.steps[1][0].src  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: AdaptiveProjectedGuidance(eta=math.nan), "eta=nan must be a finite number"),
        (lambda: AdaptiveProjectedGuidance(norm_threshold=-1), "norm_threshold=-1 must be at least 0"),
        (lambda: AdaptiveProjectedGuidance(momentum=-1), r"momentum=-1 must be in \(-1, 1\)"),
        (lambda: CfgZeroStar(1.5), r"zero_init_steps=1\.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: CfgZeroStar(-1), "zero_init_steps=-1 must be a whole number"),
        (lambda: ddim_plan(SD, 4, rule=CfgZeroStar(4)), "zero_init_steps=4 must be less than the 4 steps"),
        (lambda: mixed_plan(SD, 1, rule=CfgZeroStar()), "zero_init_steps=1 must be less than the 1 steps"),
    ],
)
def test_values_that_cannot_work_are_refused(make: Any, complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        make()
