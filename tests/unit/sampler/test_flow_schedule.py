"""The levels of flow models against the schedulers of diffusers, and what a config decides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sampler import FlowSchedule, InvalidSetting, NoiseSchedule, Schedule
from sampler.prediction import alpha_at, flow_level
from tests.tiny_video_transformers import COSMOS_SCHEDULER, QWEN_SCHEDULER

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = NoiseSchedule.scaled_linear(0.00085, 0.012, set_alpha_to_one=True)
WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def apart(ours: tuple[float, ...], theirs: Any) -> float:
    """Their last one is the clean end."""
    theirs = theirs.tolist()[: len(ours)]
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("shift", "terminal"), [(1.0, None), (3.0, None), (5.0, None), (8.0, 0.02), (0.5, None)])
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_levels_and_timesteps_are_those_of_flow_match_euler(shift: float, terminal: float | None, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=terminal)
    theirs.set_timesteps(steps)
    for ours in (FlowSchedule(shift, shift_terminal=terminal), FlowSchedule.from_config(theirs.config)):
        assert apart(ours.sigmas(steps), theirs.sigmas) <= 1.2e-7
        assert apart(tuple(t for t, _ in ours.levels(steps)), theirs.timesteps) <= 1.3e-4  # 1000 times that


@pytest.mark.parametrize("shape", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [16, 1560, 8192])
def test_a_dynamic_shift_depends_on_the_tokens(shape: str, tokens: int) -> None:
    """As QwenImagePipeline calls its scheduler."""
    theirs, steps = FlowMatchEulerDiscreteScheduler.from_config({**QWEN_SCHEDULER, "time_shift_type": shape}), 30
    mu = 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)
    theirs.set_timesteps(sigmas=[1 + (1 / steps - 1) * i / (steps - 1) for i in range(steps)], mu=mu)
    ours = FlowSchedule.from_config(theirs.config, tokens=tokens, time_scale=1)
    assert apart(ours.sigmas(steps), theirs.sigmas) <= (1.2e-7 if shape == "exponential" else 2.4e-7)
    assert ours.sigmas(steps)[-1] == pytest.approx(0.02)
    assert ours.levels(steps)[0].timestep == 1


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_levels_of_the_multistep_schedulers_with_flow_sigmas(shift: float) -> None:
    config = {**WAN, "flow_shift": shift}
    unipc = UniPCMultistepScheduler.from_config(config)
    solver = DPMSolverMultistepScheduler.from_config({**config, "_class_name": "DPMSolverMultistepScheduler"})
    for theirs, spacing, closeness in (
        (unipc, "unipc", 1.1e-6),
        (solver, "dpmsolver", 1.2e-7),
    ):  # UniPC begins at 1 - 1e-6
        theirs.set_timesteps(50)
        ours = FlowSchedule.from_config(theirs.config)
        assert ours == FlowSchedule(shift, spacing)
        assert apart(ours.sigmas(50), theirs.sigmas) <= closeness


def test_flow_match_eulers_last_level_is_shifted_twice_and_unipcs_once() -> None:
    """At shift 3 and 50 steps: a sevenfold difference of the noise that the last step removes."""
    assert FlowSchedule(3.0).sigmas(50)[-1] == pytest.approx(0.0089, abs=5e-5)
    assert FlowSchedule(3.0, "unipc").sigmas(50)[-1] == pytest.approx(0.060, abs=5e-4)


def test_karras_levels_are_noise_to_signal_ratios_as_in_cosmos() -> None:
    theirs = FlowMatchEulerDiscreteScheduler.from_config(COSMOS_SCHEDULER)
    theirs.register_to_config(sigma_max=80.0, sigma_min=0.002)
    theirs.set_timesteps(sigmas=torch.linspace(0, 1, 12, dtype=torch.float64))
    ours = FlowSchedule.from_config(COSMOS_SCHEDULER)
    assert ours == FlowSchedule(spacing="karras", time_scale=1, final_sigmas_type="sigma_min")
    assert apart(ours.sigmas(12), theirs.sigmas / (1 + theirs.sigmas)) <= 1.2e-7
    assert [t for t, _ in ours.levels(12)] == list(ours.sigmas(12))
    assert ours.final_alpha == ours.levels(12)[-1].alpha  # the last step changes nothing
    later = {**WAN, "use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.01}  # Cosmos-Predict2.5
    unipc = UniPCMultistepScheduler.from_config(later)
    unipc.set_timesteps(12)
    assert apart(FlowSchedule.from_config(later).sigmas(12), unipc.sigmas) <= 1.2e-7
    assert FlowSchedule.from_config(later).final_alpha == 1


def test_flow_networks_match_at_equal_s_and_others_at_equal_signal_to_noise() -> None:
    wan, cosmos = FlowSchedule(3.0, "unipc"), FlowSchedule(spacing="karras", time_scale=1)
    for level, s in zip(wan.levels(50), wan.sigmas(50), strict=True):
        assert cosmos.timestep_at(level.alpha) == s
        assert FlowSchedule(7.0).timestep_at(level.alpha) == level.timestep
    for t in (0, 300, 999):
        alpha = SD.alphas_cumprod[t]
        s = cosmos.timestep_at(alpha)
        assert (s / (1 - s)) ** 2 == pytest.approx((1 - alpha) / alpha, rel=1e-5)
        assert SD.timestep_at(alpha_at(s)) == t
    assert flow_level(SD.alphas_cumprod[-1]) == pytest.approx(0.936, abs=5e-4)


def test_pure_noise_is_matched_too() -> None:
    """Its noise-to-signal ratio is infinite."""
    zero_snr = NoiseSchedule((0.9, 0.5, 0.0), prediction_type="v_prediction")
    assert [zero_snr.nearest_timestep(alpha) for alpha in (1.0, 0.5, 1e-9, 0.0)] == [0, 1, 1, 2]
    assert SD.nearest_timestep(0.0) == 999
    assert FlowSchedule().timestep_at(0.0) == 1000
    assert FlowSchedule().timestep_at(1.0) == 0


def test_both_kinds_are_schedules_and_betas_keep_whole_timesteps() -> None:
    assert isinstance(SD, Schedule)
    assert isinstance(FlowSchedule(), Schedule)
    assert all(isinstance(level.timestep, int) for level in (SD.turn, *SD.levels(7)))
    assert [level.alpha for level in SD.levels(7)] == [SD.alphas_cumprod[t] for t in SD.timesteps(7)]
    assert isinstance(SD.timestep_at(0.3), int)
    assert FlowSchedule(3.0, time_scale=1).turn.timestep == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"shift": 0}, "shift=0 must be greater than 0"),
        ({"shift": math.inf}, "shift=inf must be a finite number"),
        ({"shift": "3"}, "shift='3' must be a finite number"),
        ({"time_scale": -1}, "time_scale=-1 must be greater than 0"),
        ({"spacing": "trailing"}, "spacing='trailing' is not supported; use one of 'euler'"),
        ({"shift_terminal": 1}, "shift_terminal=1 must be in"),
        ({"num_train_timesteps": 1}, "num_train_timesteps=1 must be at least 2"),
        ({"sigma_range": (0.002, 80)}, r"sigma_range=\(0.002, 80\) must be the first and the last"),
        ({"sigma_range": 80}, "sigma_range=80 must be the first and the last"),
        (
            {"spacing": "karras", "shift": 3.0},
            r"spacing='karras' takes its levels from sigma_range, not from shift=3\.0",
        ),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min' works with spacing='karras', not 'euler'"),
    ],
)
def test_impossible_schedule_names_field_and_value(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        FlowSchedule(**settings)


@pytest.mark.parametrize("steps", [0, 1001, 2.5, "8", None])
def test_impossible_step_count_is_named(steps: Any) -> None:
    with pytest.raises(InvalidSetting, match=rf"steps={steps!r} must be a whole number in 1\.\.1000"):
        FlowSchedule().levels(steps)


def test_one_step_has_no_first_and_last_level() -> None:
    assert FlowSchedule(3.0).sigmas(1) == (1.0,)
    for schedule in (FlowSchedule(shift_terminal=0.02), FlowSchedule.from_config(COSMOS_SCHEDULER)):
        with pytest.raises(InvalidSetting, match="steps=1 must be at least 2"):
            schedule.sigmas(1)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"invert_sigmas": True}, "invert_sigmas=True is not supported"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas=True is not supported"),
        ({"stochastic_sampling": True}, "use stochastic_sampling=False"),
        ({"use_dynamic_shifting": True}, "pass tokens="),
        ({"use_karras_sigmas": True}, "needs sigma_max and sigma_min"),
        ({"use_dynamic_shifting": True, "base_shift": "a"}, "base_shift='a' must be a finite number"),
        ({"shift": "3"}, "shift='3' must be a finite number"),
        ({**WAN, "use_flow_sigmas": False}, "use NoiseSchedule.from_config"),
        ({**WAN, "prediction_type": "epsilon"}, "prediction_type='epsilon' with use_flow_sigmas"),
        ({**WAN, "final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min' works with spacing='karras'"),
        ({"_class_name": "DDIMScheduler"}, "_class_name='DDIMScheduler' is not supported; use one of"),
    ],
    ids=str,
)
def test_what_is_not_supported_in_a_config_is_refused_by_name(config: dict[str, Any], complaint: str) -> None:
    tokens = 100 if "base_shift" in config else None
    with pytest.raises(InvalidSetting, match=complaint):
        FlowSchedule.from_config(config, tokens=tokens)


def test_a_live_schedulers_config_does_not_name_its_class() -> None:
    settings: dict[str, Any] = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    unipc, solver = UniPCMultistepScheduler(**settings), DPMSolverMultistepScheduler(**settings)
    assert FlowSchedule.from_config(unipc.config) == FlowSchedule(3.0, "unipc")
    assert FlowSchedule.from_config(solver.config) == FlowSchedule(3.0, "dpmsolver")
    assert FlowSchedule.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config) == FlowSchedule(3.0)
    cogvideox = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours = NoiseSchedule.from_config(cogvideox.config)
    assert list(ours.alphas_cumprod) == cogvideox.alphas_cumprod.tolist()
    with pytest.raises(InvalidSetting, match=r"use FlowSchedule\.from_config"):
        NoiseSchedule.from_config(FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(InvalidSetting, match=r"use NoiseSchedule\.from_config"):
        FlowSchedule.from_config(DDIMScheduler().config)


def test_tokens_without_a_dynamic_shift_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="tokens=16 has no use"):
        FlowSchedule.from_config(WAN, tokens=16)


@pytest.mark.parametrize("config", [WAN, {"_class_name": "FlowMatchEulerDiscreteScheduler"}])
def test_the_schedule_of_betas_names_that_of_flows(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=r"use FlowSchedule\.from_config"):
        NoiseSchedule.from_config(config)
