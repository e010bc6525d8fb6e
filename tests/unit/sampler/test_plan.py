"""The moves of a plan, step by step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler import (
    Call,
    FusedMove,
    Move,
    NoiseSchedule,
    Renoise,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    zigzag_plan,
)

SD = NoiseSchedule.scaled_linear(0.00085, 0.012)
ORDERS = st.sampled_from(["denoise_first", "goback_first"])
COMBINATIONS = st.sampled_from(["I-I", "V-V", "IV-IV", "IV-VI", "VI-IV", "VI-VI", "II-VV", "VV-II", "II-II", "VV-VV"])


def test_plain_ddim_is_one_video_call_a_step() -> None:
    assert ddim_plan(SD, 50).calls == {"image": 0, "video": 50}


def test_iv_iv_calls_the_image_model_twice_and_the_video_model_three_times_a_step() -> None:
    # trailing spacing ends at timestep 19, so every level differs; the last step has no room for a zig-zag
    schedule = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing")
    assert mixed_plan(schedule, 50).calls == {"image": 98, "video": 148}


@given(combination=COMBINATIONS, order=ORDERS, n=st.integers(1, 60))
def test_every_step_is_a_walk_on_the_grid_that_comes_back(combination: str, order: str, n: int) -> None:
    plan = mixed_plan(SD, n, combination=combination, order=order)
    grid = {SD.alphas_cumprod[t] for t in SD.timesteps(n)} | {SD.final_alpha}
    assert len(plan) == n
    for moves, plain in zip(plan, ddim_plan(SD, n), strict=True):
        assert moves[-1] == plain[0]
        assert all(a.dst == b.src for a, b in itertools.pairwise(moves))
        assert moves[0].src == plain[0].src
        assert {m.src for m in moves} | {m.dst for m in moves} <= grid


@given(combination=COMBINATIONS, order=ORDERS)
def test_denoising_guides_forwards_and_going_back_guides_backwards(combination: str, order: str) -> None:
    for moves in mixed_plan(SD, 30, combination=combination, order=order, image_guidance=(3, 3), video_guidance=(5, 5)):
        for move in moves[:-1]:
            expected = 3 if move.model == "image" else 5
            assert move.guidance == (expected if move.dst > move.src else -expected)


def test_denoise_first_runs_the_letters_in_the_order_of_the_released_code() -> None:
    moves = mixed_plan(SD, 50, combination="IV-VI").steps[10]
    assert [m.model for m in moves] == ["video", "image", "image", "video", "video"]
    t = SD.timesteps(50)
    assert [m.timestep for m in moves] == [t[10], t[11], t[12], t[11], t[10]]


def test_goback_first_climbs_before_it_denoises() -> None:
    moves = mixed_plan(SD, 50, order="goback_first").steps[10]
    t = SD.timesteps(50)
    assert [m.model for m in moves] == ["image", "video", "image", "video", "video"]
    assert [m.timestep for m in moves] == [t[10], t[9], t[8], t[9], t[10]]
    assert [len(step) for step in mixed_plan(SD, 50, order="goback_first").steps[:3]] == [1, 1, 5]


@given(begin=st.floats(0, 1), length=st.floats(0, 1), n=st.integers(1, 100))
def test_interval_marks_a_run_of_active_steps(begin: float, length: float, n: int) -> None:
    end = min(1.0, begin + length)
    active = [len(step) > 1 for step in mixed_plan(SD, n, interval=(begin, end))]
    expected = [round(begin * n) <= i < round(end * n) and i < n - 1 for i in range(n)]
    assert active == expected


def test_empty_interval_is_plain_ddim() -> None:
    assert mixed_plan(SD, 50, interval=(0.5, 0.5)) == ddim_plan(SD, 50)


def test_first_half_of_fifty_steps_is_steps_1_to_25() -> None:
    """The paper's Fig. 4 caption: 0 % - 50 % of 50 steps are steps 1 to 25."""
    active = [i for i, step in enumerate(mixed_plan(SD, 50, interval=(0.0, 0.5))) if len(step) > 1]
    assert active == list(range(25))


def test_dynamic_guidance_has_the_values_of_the_released_formula() -> None:
    """Computed by hand: (6 -> 2, rho 7) at i = 0, 12, 24, 37, 49 is 6, 4.66, 3.58, 2.66, 2."""
    plan = mixed_plan(SD, 50, order="goback_first", image_guidance=(6, 2), rho=7.0)
    scales = {i: next((abs(m.guidance) for m in plan.steps[i] if m.model == "image"), None) for i in (12, 24, 37, 49)}
    assert scales == {i: pytest.approx(v, abs=0.005) for i, v in ((12, 4.66), (24, 3.58), (37, 2.66), (49, 2.0))}


def test_image_model_runs_at_the_timestep_of_equal_noise() -> None:
    linear = NoiseSchedule.linear(0.00085, 0.012, timestep_spacing="trailing")
    plan = mixed_plan(linear, 10, image_schedule=SD)
    for moves in plan:
        for move in moves:
            own = SD if move.model == "image" else linear
            assert move.timestep == own.nearest_timestep(move.src)


def test_moves_without_effect_cost_nothing() -> None:
    assert Move("video", 0, 0.9, 0.9, 7.5).is_free
    assert not Move("video", 500, 0.2, 0.3, 7.5).is_free


def test_clean_end_with_alpha_one_is_reached_by_the_ordinary_step_only() -> None:
    schedule = NoiseSchedule.scaled_linear(0.00085, 0.012, set_alpha_to_one=True)
    plan = mixed_plan(schedule, 10)
    assert plan.steps[-1][-1].dst == 1.0
    assert all(m.src < 1 and m.dst < 1 for moves in plan for m in moves[:-1])


def test_gaussian_noise_takes_the_place_of_inversion() -> None:
    moves = mixed_plan(SD, 50, combination="RR-IV", order="goback_first").steps[10]
    a = [SD.alphas_cumprod[t] for t in SD.timesteps(50)]
    assert moves[:2] == (Renoise(a[10], a[9]), Renoise(a[9], a[8]))
    assert [(m.model, m.guidance) for m in moves[2:]] == [("image", 4), ("video", 4), ("video", 7.5)]


@pytest.mark.parametrize(
    ("combination", "image", "video"),
    [  # goback_first skips the first steps, which have no levels above them
        ("R-I", 49, 50),
        ("R-V", 0, 50 + 49),
        ("RR-II", 2 * 48, 50),
        ("RR-VV", 0, 50 + 2 * 48),
    ],
)
def test_gaussian_noise_costs_no_call(combination: str, image: int, video: int) -> None:
    plan = mixed_plan(SD, 50, combination=combination, order="goback_first")
    assert plan.calls == {"image": image, "video": video}


@given(period=st.integers(1, 9), order=ORDERS, begin=st.sampled_from([0.0, 0.3]))
def test_image_every_nth_zigzag_uses_the_image_model(period: int, order: str, begin: float) -> None:
    plan = mixed_plan(SD, 20, image_every=period, order=order, interval=(begin, 1.0), video_guidance=(3, 3))
    zigzags = [moves[:-1] for moves in plan if len(moves) > 1]
    assert [any(m.model == "image" for m in z) for z in zigzags] == [k % period == 0 for k in range(len(zigzags))]
    assert all(abs(m.guidance) == 3 for z in zigzags for m in z if m.model == "video")


def test_interval_has_its_own_guidance_in_ordinary_steps() -> None:
    """Also in the last step, which has no room for a zig-zag; the zig-zags stay as they are."""
    plan = mixed_plan(SD, 20, interval=(0.25, 1), guidance=7.5, interval_guidance=1)
    assert [moves[-1].guidance for moves in plan] == [7.5] * 5 + [1] * 15
    assert [moves[:-1] for moves in plan] == [moves[:-1] for moves in mixed_plan(SD, 20, interval=(0.25, 1))]


def test_z_sampling_denoises_goes_back_unguided_and_denoises_again() -> None:
    plan = zigzag_plan(SD, 50)
    t, a = SD.timesteps(50), [SD.alphas_cumprod[t] for t in SD.timesteps(50)]
    assert plan.steps[10] == (
        Move("video", t[10], a[10], a[11], 5.5),
        Move("video", t[11], a[11], a[10], 0.0),
        Move("video", t[10], a[10], a[11], 5.5),
    )
    assert plan.calls == {"image": 0, "video": 3 * 49 + 1}  # the paper's 49 of 50 steps
    assert zigzag_plan(SD, 50, interval=(0, 0), guidance=7.5) == ddim_plan(SD, 50)


def test_fused_step_has_the_guidance_of_a_whole_zigzag_in_two_calls() -> None:
    """eps_u^V + (w0 + w_D^V + w_N^V) d^V + (w_D^I + w_N^I) d^I, with w_D = w_N of each model."""
    plan = fused_plan(SD, 50, image_guidance=(4, 4), video_guidance=(3, 3), guidance=7.5, interval=(0, 0.5))
    t, a = SD.timesteps(50), [SD.alphas_cumprod[t] for t in SD.timesteps(50)]
    parts = (Call("video", t[10], a[10], 13.5), Call("image", t[10], a[10], 8.0, uncond=0.0))
    assert plan.steps[10] == (FusedMove(parts, a[10], a[11]),)
    assert plan.steps[25:] == ddim_plan(SD, 50).steps[25:]
    assert fused_plan(SD, 50).calls == {"image": 50, "video": 50}


def test_free_init_repeats_the_plan_and_restarts_in_between() -> None:
    plan = mixed_plan(SD, 10)
    repeated = free_init_plan(plan, SD, 3)
    assert repeated.steps[:10] == plan.steps
    assert [i for i, step in enumerate(repeated) if len(step) > len(plan.steps[i % 10])] == [10, 20]
    assert repeated.calls == {name: 3 * n for name, n in plan.calls.items()}
    assert free_init_plan(plan, SD, 1) == plan
