import hashlib
import itertools
import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler import (
    Call,
    FusedMove,
    InvalidSetting,
    Move,
    NoiseSchedule,
    Plan,
    Renoise,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    official_plan,
    zigzag_plan,
)

SD = NoiseSchedule.scaled_linear(0.00085, 0.012)
PRINTED = [
    "f774105ed3a35373",
    "1df81f0b34c8ebe4",
    "80dac4553378e9a1",
    "fbb0aa69a9b88c1a",
    "ae6047d1d31a8d15",
    "366d7a8738b2604c",
]
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


@pytest.mark.parametrize("combination", ["", "IV", "IV-I", "IX-IV", "IVI-IVI", "iv-iv", "IV-IV-", 4, None])
def test_unknown_combination_says_what_to_write(combination: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"combination=.*for example 'IV-IV'"):
        mixed_plan(SD, 10, combination=combination)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"interval": (0.6, 0.4)}, "interval"),
        ({"interval": (-0.1, 0.4)}, "interval"),
        ({"order": "sideways"}, "order='sideways'"),
        ({"rho": 0}, "rho=0"),
        ({"rho": math.inf}, "rho=inf"),
        ({"image_guidance": (-1, 4)}, "image_guidance"),
        ({"video_guidance": (4, math.nan)}, r"video_guidance=\(4, nan\)"),
        ({"guidance": math.nan}, "guidance=nan"),
        ({"interval": (math.nan, 1)}, "interval"),
        ({"image_every": 0}, "image_every=0"),
        ({"image_every": 0.5}, r"image_every=0\.5"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "50"}, "steps='50' must be a whole number"),
        ({"image_guidance": "4"}, "image_guidance='4' must be one guidance scale, or two"),
        ({"image_guidance": (4, 4, 4)}, r"image_guidance=\(4, 4, 4\) must be one guidance scale, or two"),
        ({"video_guidance": None}, "video_guidance=None must be one guidance scale, or two"),
        ({"video_guidance": ("4", "2")}, r"video_guidance=\('4', '2'\) must be one guidance scale, or two"),
        ({"video_guidance": True}, "video_guidance=True must be one guidance scale, or two"),
        ({"video_guidance": -1}, "video_guidance=-1 must be one .* at least 0"),
        ({"video_guidance": math.inf}, "video_guidance=inf must be one .* finite"),
        ({"guidance": "7.5"}, "guidance='7.5' must be a finite number"),
        ({"guidance": (7, 5)}, r"guidance=\(7, 5\) must be a finite number"),
        ({"rho": "7"}, "rho='7' must be a finite number"),
        ({"rho": None}, "rho=None must be a finite number"),
        ({"interval": 0.5}, "interval=0.5 must be two fractions"),
        ({"interval": (0, 0.5, 1)}, r"interval=\(0, 0.5, 1\) must be two fractions"),
        ({"interval": "01"}, "interval='01' must be two fractions"),
        ({"order": 3}, "order=3 is not supported"),
        ({"order": ["goback_first"]}, "order=.* is not supported"),
        ({"image_every": "2"}, "image_every='2' must be a whole number"),
        ({"image_schedule": {"beta_start": 0.1}}, "image_schedule=.* must be a NoiseSchedule"),
    ],
)
def test_bad_setting_is_named(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        mixed_plan(SD, **{"steps": 10, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [4, 4.0, 0, 2.5])
def test_one_guidance_scale_is_both_ends(value: float) -> None:
    one, two = (
        {"image_guidance": value, "video_guidance": value},
        {"image_guidance": (value, value), "video_guidance": [value] * 2},
    )
    for make in (mixed_plan, fused_plan, partial(official_plan, "animatediff")):
        assert repr(make(SD, steps=9, **one)) == repr(make(SD, steps=9, **two))


def test_a_scheduler_in_place_of_a_schedule_is_refused_with_the_way_out() -> None:
    for make in (mixed_plan, ddim_plan, fused_plan, zigzag_plan):
        with pytest.raises(InvalidSetting, match=r"schedule='ddim' must be a NoiseSchedule; .*from_config"):
            make("ddim")  # type: ignore[arg-type]


def test_printed_form_of_a_plan_is_unchanged_since_the_first_checkpoints() -> None:
    """A checkpoint's fingerprint hashes it: a change would orphan every checkpoint of a running fleet."""
    plans = (
        ddim_plan(SD, 10),
        mixed_plan(SD, 10),
        fused_plan(SD, 5),
        zigzag_plan(SD, 7),
        official_plan("videocrafter", SD, 7),
        free_init_plan(mixed_plan(SD, 6, combination="RR-VV", order="goback_first"), SD),
    )
    assert [hashlib.sha256(repr(plan).encode()).hexdigest()[:16] for plan in plans] == PRINTED


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


@pytest.mark.parametrize("combination", ["R-I", "R-V", "RR-II", "RR-VV"])
def test_gaussian_noise_after_denoising_is_refused_with_the_way_out(combination: str) -> None:
    with pytest.raises(InvalidSetting, match=r"use order='goback_first'"):
        mixed_plan(SD, 10, combination=combination)


@pytest.mark.parametrize("combination", ["I-R", "IV-RV", "R-R"])
def test_gaussian_noise_cannot_denoise(combination: str) -> None:
    with pytest.raises(InvalidSetting, match="before the dash also R"):
        mixed_plan(SD, 10, combination=combination, order="goback_first")


@given(period=st.integers(1, 9), order=ORDERS, begin=st.sampled_from([0.0, 0.3]))
def test_image_every_nth_zigzag_uses_the_image_model(period: int, order: str, begin: float) -> None:
    plan = mixed_plan(SD, 20, image_every=period, order=order, interval=(begin, 1.0), video_guidance=(3, 3))
    zigzags = [moves[:-1] for moves in plan if len(moves) > 1]
    assert [any(m.model == "image" for m in z) for z in zigzags] == [k % period == 0 for k in range(len(zigzags))]
    assert all(abs(m.guidance) == 3 for z in zigzags for m in z if m.model == "video")


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


@pytest.mark.parametrize(
    ("make", "settings", "complaint"),
    [
        (zigzag_plan, {"goback_guidance": math.nan}, "goback_guidance=nan"),
        (zigzag_plan, {"interval": (0.5, 1.5)}, "interval"),
        (fused_plan, {"guidance": math.inf}, "guidance=inf"),
        (fused_plan, {"rho": 0}, "rho=0"),
        (ddim_plan, {"guidance": math.nan}, "guidance=nan"),
        (ddim_plan, {"steps": 0}, "steps=0"),
        (ddim_plan, {"guidance": "7"}, "guidance='7'"),
        (zigzag_plan, {"steps": "50"}, "steps='50'"),
        (zigzag_plan, {"interval": 1}, "interval=1 must be two fractions"),
        (fused_plan, {"image_guidance": (1, 2, 3)}, r"image_guidance=\(1, 2, 3\)"),
        (fused_plan, {"video_guidance": "4"}, "video_guidance='4'"),
    ],
)
def test_bad_setting_of_a_comparator_is_named(make: Any, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        make(SD, **settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"method": "box"}, "method='box'.*gaussian"),
        ({"order": 0}, "order=0"),
        ({"spatial_cutoff": 0.0}, "spatial_cutoff=0.0"),
        ({"temporal_cutoff": math.nan}, "temporal_cutoff=nan"),
        ({"temporal_cutoff": "1"}, "temporal_cutoff='1'"),
        ({"iterations": "3"}, "iterations='3'"),
        ({"iterations": 2.5}, "iterations=2.5"),
        ({"order": None}, "order=None"),
    ],
)
def test_bad_setting_of_free_init_is_named(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        free_init_plan(ddim_plan(SD, 4), SD, **settings)  # type: ignore[arg-type]


TABLES = {
    "mixed": (
        mixed_plan(SD, 50, interval=(0.2, 1.0), image_guidance=(6, 2)),
        """\
steps    count  kind      moves                guidance                              calls a step
0-9, 49  11     V         D_V                  +7.5                                  1 V
10-48    39     IV-IV, V  D_I D_V N_I N_V D_V  +4.86..+2.05 +4 -4.86..-2.05 -4 +7.5  2 I + 3 V
total    50                                                                          78 I + 128 V""",
    ),
    "noise": (
        mixed_plan(SD, 6, combination="RR-VV", order="goback_first"),
        """\
steps  count  kind      moves            guidance    calls a step
0-1    2      V         D_V              +7.5        1 V
2-5    4      RR-VV, V  R R D_V D_V D_V  +4 +4 +7.5  3 V
total  6                                             14 V""",
    ),
    "official": (
        official_plan("videocrafter", SD, 12),
        """\
steps                   count  kind      moves                    guidance        calls a step
0-1, 3-4, 6-7, .. 9-10  8      IV-IV, V  D_I D_V N_I N_V S_V      +4 +4 -4 -4 +9  2 I + 3 V
2, 5, 8                 3      VV-VV, V  D_V D_V N_V N_V S_V      +4 +4 -4 -4 +9  5 V
11                      1      VV-VV, V  D_V (D_V) (N_V) N_V S_V  +4 +4 -4 -4 +9  3 V
total                   12                                                        16 I + 42 V
(in brackets: changes nothing, so its network is not called)""",
    ),
    "free init": (
        free_init_plan(fused_plan(SD, 2, interval=(0, 0.5)), SD, 2),
        """\
steps  count  kind                 moves           guidance  calls a step
0      1      fused V+I            D_V+I           +15.5&+8  1 I + 1 V
1, 3   2      V                    D_V             +7.5      1 V
2      1      FreeInit, fused V+I  FreeInit D_V+I  +15.5&+8  1 I + 1 V
total  4                                                     2 I + 4 V""",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_printed_plan_has_a_row_for_every_kind_of_step(name: str) -> None:
    plan, expected = TABLES[name]
    assert str(plan) == expected


def test_empty_plan_can_be_printed() -> None:
    assert "total" in str(Plan(()))
    assert "nothing" in str(Plan(((),)))


def test_noise_cannot_take_the_latents_to_a_cleaner_level() -> None:
    with pytest.raises(InvalidSetting, match=r"src=0\.5 to dst=0\.6"):
        Renoise(0.5, 0.6)
