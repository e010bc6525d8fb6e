"""One move for epsilon, v and flow: closed forms, exact networks, and the schedulers of diffusers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sampler import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    FlowSchedule,
    FusedMove,
    IncompatibleInputs,
    InvalidSetting,
    Move,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    along,
    ddim_plan,
    sample,
    seeded_noise,
)
from sampler.denoise_and_goback_moves import Call
from sampler.prediction import PredictionType, alpha_at, clean, converted, flow_level, signal_and_noise
from tests.unit.sampler.mixture import (
    NOISE,
    Mixture,
    distance,
    image,
    last,
    of_betas,
    video,
)
from tests.unit.sampler.networks import texts

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "flow")
SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing", set_alpha_to_one=True)
levels = st.floats(0.001, 0.999)


def predicted(kind: PredictionType, x0: Tensor, eps: Tensor, alpha: float) -> Tensor:
    a, b = signal_and_noise(alpha)
    return {"epsilon": eps, "v_prediction": a * eps - b * x0, "flow": eps - x0}[kind]


def noisy(x0: Tensor, eps: Tensor, alpha: float) -> Tensor:
    a, b = signal_and_noise(alpha)
    return a * x0 + b * eps


@given(src=levels, dst=levels)
def test_a_move_keeps_the_clip_and_the_noise_that_the_network_names(src: float, dst: float) -> None:
    """And back again, in float64."""
    x0, eps = seeded_noise((2, 50), 3).double()
    x = noisy(x0, eps, src)
    for kind in KINDS:
        of_x, of_p = along(src, dst, kind)
        moved = of_x * x + of_p * predicted(kind, x0, eps, src)
        assert torch.allclose(moved, noisy(x0, eps, dst), rtol=0, atol=1e-12)
        of_x, of_p = along(dst, src, kind)
        back = of_x * moved + of_p * predicted(kind, x0, eps, dst)
        assert torch.allclose(back, x, rtol=0, atol=1e-11)
        assert torch.allclose(clean(x, predicted(kind, x0, eps, src), src, kind), x0, rtol=0, atol=1e-11)


def test_there_and_back_between_usual_levels_is_exact_to_rounding() -> None:
    x0, eps = seeded_noise((2, 1000), 4).double()
    src, dst = alpha_at(0.8), alpha_at(0.6)
    for kind in KINDS:
        x = noisy(x0, eps, src)
        there = [along(src, dst, kind), along(dst, src, kind)]
        y = there[0][0] * x + there[0][1] * predicted(kind, x0, eps, src)
        z = there[1][0] * y + there[1][1] * predicted(kind, x0, eps, dst)
        assert (z - x).abs().max() < 2e-15


# Schedules end at 0 or at 1/1000. Between them abar is near 1, where a float keeps few digits of 1 - abar.
flow_levels = st.one_of(st.just(0.0), st.floats(1e-3, 1))


@given(src=flow_levels, dst=flow_levels)
def test_a_move_of_a_flow_is_one_of_euler(src: float, dst: float) -> None:
    """z' = z + (s' - s) v, for z = x / (a + b)."""
    before, after = alpha_at(src), alpha_at(dst)
    of_x, of_v = along(before, after, "flow")
    scale = sum(signal_and_noise(before)), sum(signal_and_noise(after))
    assert of_x * scale[0] / scale[1] == pytest.approx(1, abs=1e-12)
    assert of_v / scale[1] == pytest.approx(dst - src, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_becomes_any_other(kind: PredictionType) -> None:
    x0, eps = seeded_noise((2, 50), 5).double()
    for alpha in (0.0, 0.02, 0.5, 0.97) if kind != "epsilon" else (0.02, 0.5, 0.97):
        x, p = noisy(x0, eps, alpha), predicted(kind, x0, eps, alpha)
        for target in KINDS:
            assert torch.allclose(converted(p, x, alpha, kind, target), predicted(target, x0, eps, alpha), atol=1e-12)
            other = predicted(kind, 2 * x0, eps - x0, alpha)  # a difference of two predictions for one x
            weighted = 3 * (other - p)
            expected = 3 * (converted(other, x, alpha, kind, target) - converted(p, x, alpha, kind, target))
            assert torch.allclose(converted(weighted, x, alpha, kind, target, 0.0), expected, atol=1e-11)


def test_epsilon_at_pure_noise_is_a_clear_error_before_the_first_step() -> None:
    for kind in ("v_prediction", "flow"):
        assert all(map(math.isfinite, along(0.0, alpha_at(0.9), kind)))
    with pytest.raises(InvalidSetting, match=r"abar=0\.0 is pure noise, where a network that predicts epsilon"):
        along(0.0, 0.5, "epsilon")
    calls: list[int] = []

    def network(x: Tensor, timestep: float, **_text: Tensor) -> Tensor:
        calls.append(1)
        return x

    plan = ddim_plan(FlowSchedule(3.0), 4)
    models: list[Any] = [
        VideoDenoiser(network, *texts()),
        lambda x, _timestep, _alpha, _guidance: network(x, 0),  # custom denoisers answer with epsilon
    ]
    for model in models:
        with pytest.raises(IncompatibleInputs, match="step 0 calls the video model at pure noise"):
            sample(seeded_noise((1, 4, 1, 2, 2), 0), plan, video=model)
    assert not calls
    assert len(list(sample(seeded_noise((1, 4, 1, 2, 2), 0), plan, video=models[0], start=1))) == 3  # below it


def test_the_three_forms_of_one_network_run_alike() -> None:
    alphas = [SD.alphas_cumprod[t] for t in SD.timesteps(25)] + [1.0]
    ends = {}
    for kind in KINDS:
        times = [1000 * flow_level(a) if kind == "flow" else a for a in alphas]
        steps = zip(times, alphas, alphas[1:], strict=False)
        plan = Plan(tuple((Move("video", t, src, dst, 3.0),) for t, src, dst in steps))
        ends[kind] = last(plan, video=video(Mixture(kind, None if kind == "flow" else signal_and_noise)))
    assert distance(ends["flow"], ends["epsilon"]) <= 2e-6
    assert distance(ends["flow"], ends["v_prediction"]) <= 2e-6


@pytest.mark.parametrize("rule", [AdaptiveProjectedGuidance(0.3, 2.0), CfgZeroStar(0)], ids=["apg", "cfg-zero"])
def test_guidance_rules_mean_the_same_for_every_form(rule: Any) -> None:
    def level(t: float) -> tuple[float, float]:
        s = flow_level(SD.alphas_cumprod[int(t)])
        return 1 - s, s

    plan, ends = ddim_plan(SD, 8, guidance=3.0, rule=rule), {}
    for kind in KINDS:
        ends[kind] = last(plan, video=video(Mixture(kind, level if kind == "flow" else of_betas(SD))))
    assert distance(ends["flow"], ends["epsilon"]) <= 1e-5
    assert distance(ends["v_prediction"], ends["epsilon"]) <= 1e-5
    flow = last(ddim_plan(FlowSchedule(3.0), 8, guidance=3.0, rule=rule), video=video(Mixture("flow")))  # from s = 1
    assert flow.isfinite().all()


def test_fractional_timesteps_reach_the_network_in_float32() -> None:
    """bfloat16 holds no number between 996 and 1000, and int64 cuts off the fraction."""
    seen: list[Any] = []

    def network(x: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Tensor:
        assert x.dtype == encoder_hidden_states.dtype == torch.bfloat16
        seen.append(timestep)
        return 0.1 * x

    cond, uncond = (text.bfloat16() for text in texts())
    model = VideoDenoiser(network, cond, uncond, prediction_type="flow")
    schedule = FlowSchedule(3.0, "unipc")
    plan = ddim_plan(schedule, 30)
    latents = last(plan, seeded_noise((1, 4, 1, 2, 2), 0), video=model)
    assert latents.dtype == torch.float32
    assert {t.dtype for t in seen} == {torch.float32}
    assert [float(t) for t in seen] == [t for t, _ in schedule.levels(30)]
    assert [float(t) / 1000 for t in seen] == pytest.approx(schedule.sigmas(30), rel=1e-7)
    assert not all(float(t).is_integer() for t in seen)


def test_networks_with_their_own_guidance_get_the_timestep_as_a_number() -> None:
    seen: list[Any] = []

    def network(x: Tensor, timestep: Any, encoder_hidden_states: tuple[Tensor, ...]) -> Tensor:
        seen.append(timestep)
        return x

    network.native_cfg = True  # type: ignore[attr-defined]
    model = VideoDenoiser(network, *texts(), prediction_type="flow")
    last(ddim_plan(FlowSchedule(3.0), 4), seeded_noise((1, 4, 1, 2, 2), 0), video=model)
    assert seen == [t for t, _ in FlowSchedule(3.0).levels(4)]


def test_a_flow_network_sees_the_latents_of_its_flow_and_other_networks_those_of_theirs() -> None:
    inputs: list[Tensor] = []

    def network(x: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Tensor:
        inputs.append(x)
        return x

    x, alpha = seeded_noise((1, 4, 1, 2, 2), 0), 0.3
    for kind in KINDS:
        VideoDenoiser(network, *texts(), prediction_type=kind)(x, 300, alpha, 0.0)
    assert torch.equal(inputs[0], x)
    assert torch.equal(inputs[1], x)
    assert torch.allclose(inputs[2], x / sum(signal_and_noise(alpha)))


@pytest.mark.parametrize("sequential", [False, True])
def test_denoisers_of_every_form_answer_with_the_same_epsilon(sequential: bool) -> None:
    """Guidance is linear. One CFG branch at a time halves the memory of long clips."""
    alpha = 0.2
    found = []
    for kind in KINDS:
        model = video(Mixture(kind, lambda _t: signal_and_noise(alpha)))
        if kind == "flow":
            model = video(Mixture(kind, lambda _t: (1 - flow_level(alpha), flow_level(alpha))))
        model.sequential_cfg = sequential
        found.append(model(NOISE, 1, alpha, 4.0))
    assert distance(found[0], found[1]) <= 1e-5
    assert distance(found[0], found[2]) <= 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_a_fused_move_adds_networks_of_different_kinds(kind: PredictionType) -> None:
    """The image model's form does not matter, because only the sum does."""
    alpha, dst = 0.2, 0.4
    calls = Call("video", 1, alpha, 3.0), Call("image", 1, alpha, 2.0, 0.0)
    plan = Plan(((FusedMove(calls, alpha, dst),),))

    def network(kind: PredictionType, shift: tuple[float, float]) -> Mixture:
        s = flow_level(alpha)
        return Mixture(kind, lambda _t: (1 - s, s) if kind == "flow" else signal_and_noise(alpha), shift)

    ends = [
        last(plan, video=video(network(v, (0.0, 0.0))), image=image(network(i, (0.3, -0.2))))
        for v, i in (("epsilon", "epsilon"), ("flow", kind), (kind, "flow"))
    ]
    assert distance(ends[0], ends[1]) <= 1e-5
    assert distance(ends[0], ends[2]) <= 1e-5
