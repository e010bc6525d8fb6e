import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from sampler import InvalidSetting, NoiseSchedule

SD = NoiseSchedule.scaled_linear(0.00085, 0.012)
ANIMATEDIFF = NoiseSchedule.linear(0.00085, 0.012)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_levels_are_those_of_diffusers(kind: str) -> None:
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind)
    ours = NoiseSchedule.from_config(theirs.config)
    assert list(ours.alphas_cumprod) == theirs.alphas_cumprod.tolist()


@given(n=st.integers(2, 1000), spacing=st.sampled_from(["linspace", "leading", "trailing"]), offset=st.integers(0, 1))
def test_timesteps_are_those_of_diffusers(n: int, spacing: str, offset: int) -> None:
    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(n)
    ours = NoiseSchedule.from_config(theirs.config).timesteps(n)
    # Two departures: diffusers' leading ladder with an offset can start beyond the last timestep, and rounding in
    # numpy.arange gives its trailing ladder one timestep too many for some n (61, 103, ...).
    assert list(ours) == theirs.timesteps.clamp(max=999).tolist()[:n]


def test_timesteps_never_rise_and_stay_inside() -> None:
    for spacing in ("linspace", "leading", "trailing"):
        for n in (1, 2, 3, 7, 20, 50, 333, 999, 1000):
            ladder = SD.timesteps(n, spacing)
            assert len(ladder) == n
            assert ladder == tuple(sorted(ladder, reverse=True))
            assert 0 <= ladder[-1] <= ladder[0] <= 999


@pytest.mark.parametrize("n", [0, -1, 1001, 2.5, "50", None, True, math.nan])
def test_impossible_step_count_names_value_and_range(n: Any) -> None:
    with pytest.raises(InvalidSetting, match=rf"steps={n!r} must be a whole number in 1\.\.1000"):
        SD.timesteps(n)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: NoiseSchedule.linear("0.1", 0.2), "beta_start='0.1' must be a finite number"),
        (lambda: NoiseSchedule.scaled_linear(0.1, 1.5), r"beta_end=1\.5 must be in \(0, 1\)"),
        (lambda: NoiseSchedule.scaled_linear(0.1, 0.2, "1000"), "steps='1000' must be a whole number"),
        (lambda: NoiseSchedule.squaredcos(0), "steps=0 must be a whole number"),
        (lambda: NoiseSchedule.from_config({"num_train_timesteps": None}), "steps=None must be a whole number"),
        (lambda: NoiseSchedule(()), "alphas_cumprod must decrease"),
        (lambda: NoiseSchedule((1.5, 0.5)), "alphas_cumprod must decrease"),
        (lambda: NoiseSchedule((0.5, 0.5)), "alphas_cumprod must decrease"),
    ],
)
def test_impossible_schedule_names_value_and_range(make: Any, complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        make()


def test_equal_noise_to_signal_map_of_animatediff_to_stable_diffusion() -> None:
    """Values computed independently with numpy."""
    table = {20: 21, 100: 121, 200: 250, 300: 374, 400: 490, 500: 600, 600: 705, 700: 805, 800: 901, 900: 994}
    assert {t: SD.nearest_timestep(ANIMATEDIFF.alphas_cumprod[t]) for t in table} == table


def test_match_is_clamped_where_the_other_schedule_ends() -> None:
    assert SD.nearest_timestep(ANIMATEDIFF.alphas_cumprod[999]) == 999
    assert SD.nearest_timestep(1.0) == 0


@given(t=st.integers(0, 999))
def test_match_of_a_schedule_with_itself_is_the_identity(t: int) -> None:
    assert SD.nearest_timestep(SD.alphas_cumprod[t]) == t


def test_zero_terminal_snr_is_refused_with_the_way_out() -> None:
    theirs = DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(InvalidSetting, match="rescale_betas_zero_snr=False"):
        NoiseSchedule.from_config(theirs.config)
    theirs = DDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(InvalidSetting, match="without rescale_betas_zero_snr"):
        NoiseSchedule(tuple(theirs.alphas_cumprod.tolist()))


def test_unknown_words_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="beta_schedule='sigmoid'"):
        NoiseSchedule.from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(InvalidSetting, match="prediction_type='sample'"):
        NoiseSchedule.linear(0.0001, 0.02, prediction_type="sample")


def test_noise_to_signal_of_the_two_schedules() -> None:
    """At t = 500 it is 1.62 (scaled linear) and 2.285 (linear), computed with numpy in float64."""

    def s(schedule: NoiseSchedule, t: int) -> float:
        a = schedule.alphas_cumprod[t]
        return math.sqrt((1 - a) / a)

    assert s(SD, 500) == pytest.approx(1.62, abs=0.005)
    assert s(ANIMATEDIFF, 500) == pytest.approx(2.28473, abs=0.0005)


def test_squared_cosine_has_its_own_constructor() -> None:
    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200)
    assert list(NoiseSchedule.squaredcos(200).alphas_cumprod) == theirs.alphas_cumprod.tolist()


def test_float32_levels_are_kept_exactly() -> None:
    assert torch.tensor(SD.alphas_cumprod).double().tolist() == list(SD.alphas_cumprod)
