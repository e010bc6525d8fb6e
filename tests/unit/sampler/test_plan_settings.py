"""Settings of the plans, and how a bad one is named."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from sampler import (
    InvalidSetting,
    NoiseSchedule,
    Renoise,
    ddim_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    official_plan,
    zigzag_plan,
)

SD = NoiseSchedule.scaled_linear(0.00085, 0.012)


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
        ({"interval_guidance": math.inf}, "interval_guidance=inf must be a finite number"),
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


@pytest.mark.parametrize("combination", ["R-I", "R-V", "RR-II", "RR-VV"])
def test_gaussian_noise_after_denoising_is_refused_with_the_way_out(combination: str) -> None:
    with pytest.raises(InvalidSetting, match=r"use order='goback_first'"):
        mixed_plan(SD, 10, combination=combination)


@pytest.mark.parametrize("combination", ["I-R", "IV-RV", "R-R"])
def test_gaussian_noise_cannot_denoise(combination: str) -> None:
    with pytest.raises(InvalidSetting, match="before the dash also R"):
        mixed_plan(SD, 10, combination=combination, order="goback_first")


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


def test_noise_cannot_take_the_latents_to_a_cleaner_level() -> None:
    with pytest.raises(InvalidSetting, match=r"src=0\.5 to dst=0\.6"):
        Renoise(0.5, 0.6)
