from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.jobs.denoiser_calls import network_calls
from service.jobs.sampler_settings import USES, SamplerSettings
from service.jobs.timestep_spacing import Spacing


def calls(steps: int = 50, spacing: Spacing | None = None, **settings: object) -> tuple[int, int]:
    count = network_calls(SamplerSettings.model_validate(settings), steps, spacing or Spacing())
    return count["image"], count["video"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "ddim"}, (0, 50)),
        ({"name": "ddim", "network": "image"}, (50, 0)),
        ({"name": "ddim", "grid": "diffusers"}, (0, 50)),
        ({"name": "ddim", "solver": "dpmpp-2m"}, (0, 50)),
        ({"solver": "dpmpp-2m"}, (98, 148)),
        ({"name": "freeinit", "network": "image"}, (0, 150)),  # only ddim reads it
        ({}, (98, 148)),  # the last step has no zig-zag
        ({"combination": "I-I"}, (98, 50)),
        ({"combination": "VV-VV"}, (0, 246)),
        ({"order": "goback_first"}, (96, 146)),  # nothing is noisier than the first level
        ({"interval": (0.5, 0.5)}, (0, 50)),
        ({"interval": (0.5, 1.0)}, (48, 98)),
        ({"combination": "RR-II", "order": "goback_first"}, (96, 50)),
        ({"image_every": 2}, (50, 196)),
        ({"name": "zigzag"}, (0, 148)),
        ({"name": "fused"}, (50, 50)),
        ({"name": "evs"}, (25, 25)),
        ({"name": "evs", "image_interval": (0, 1), "image_every": 2}, (25, 25)),  # the first step is never the image's
        ({"name": "evs", "image_interval": (0.2, 0.5), "enlarge": 1}, (15, 35)),
        ({"name": "ddim", "guidance_rule": "apg"}, (0, 50)),
        ({"name": "ddim", "guidance_rule": "cfg-zero"}, (0, 49)),
        ({"guidance_rule": "cfg-zero", "zero_init_steps": 5}, (98, 143)),
        ({"name": "zigzag", "guidance_rule": "cfg-zero"}, (0, 148)),  # only ddim and iv-mixed read it
        ({"name": "freeinit", "iterations": 5}, (0, 250)),
        ({"name": "official"}, (96, 147)),  # 100 and 150, of which 7 have no effect
        ({"name": "official", "active_steps": (10, 19)}, (20, 69)),
        ({"name": "official", "active_steps": (1, 0)}, (0, 49)),
    ],
    ids=str,
)
def test_calls_of_a_run_of_50_steps(settings: dict[str, object], expected: tuple[int, int]) -> None:
    assert calls(**settings) == expected


def test_moves_between_equal_levels_cost_nothing() -> None:
    """linspace ends at timestep 0, which is the noise-free level unless set_alpha_to_one."""
    linspace = Spacing(timestep_spacing="linspace")
    assert calls(spacing=linspace, name="ddim") == (0, 49)
    assert calls(spacing=linspace, name="ddim", network="image") == (49, 0)
    assert calls(spacing=linspace, name="evs", enlarge=1) == (24, 25)
    assert calls(spacing=linspace, name="evs", enlarge=2) == (25, 25), "its clean prediction is resized"
    assert calls(spacing=linspace.model_copy(update={"set_alpha_to_one": True}), name="ddim") == (0, 50)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("grid", "diffusers"),
        ("solver", "dpmpp-2m"),
        ("network", "image"),
        ("guidance_rule", "apg"),
        ("apg_eta", 0.5),
        ("apg_norm_threshold", 5.0),
        ("apg_momentum", 0.0),
        ("zero_init_steps", 2),
        ("image_interval", (0.2, 0.4)),
        ("enlarge", 2.0),
        ("image_step_guidance", 3.0),
    ],
)
def test_newer_settings_are_left_out_of_records_where_they_say_nothing_new(name: str, other: str) -> None:
    """Workers of version 0.1 refuse fields that they do not know."""
    assert name not in SamplerSettings(name="ddim").model_dump()
    assert SamplerSettings.model_validate({"name": "ddim", name: other}).model_dump()[name] == other


def test_the_grid_of_diffusers_ddim_has_no_other_solver() -> None:
    with pytest.raises(ValidationError, match="solver 'dpmpp-2m' does not work with grid 'diffusers'"):
        SamplerSettings(name="ddim", grid="diffusers", solver="dpmpp-2m")


@pytest.mark.parametrize("name", sorted(USES))
def test_used_settings_are_those_of_the_table(name: str) -> None:
    assert set(SamplerSettings.model_validate({"name": name}).used) == USES[name]


def test_every_setting_is_used_by_a_sampler() -> None:
    assert set().union(*USES.values()) == set(SamplerSettings.model_fields) - {"name"}


@pytest.mark.parametrize(
    ("settings", "field", "way_out"),
    [
        ({"combination": "IV-I"}, "combination", "of the form IV-IV"),
        ({"combination": "I-R"}, "combination", "of the form IV-IV"),
        ({"combination": "R-I"}, "order", "use 'goback_first'"),
        ({"combination": "RR-VV", "order": "denoise_first"}, "order", "use 'goback_first'"),
        ({"interval": (0.6, 0.4)}, "interval", "0 <= start <= end <= 1"),
        ({"interval": (0.0, float("nan"))}, "interval", "finite"),
        ({"rho": 0}, "rho", "greater than 0"),
        ({"image_guidance": (4, 101)}, "image_guidance", "less than or equal to 100"),
        ({"image_every": 0}, "image_every", "greater than or equal to 1"),
        ({"iterations": 11}, "iterations", "less than or equal to 10"),
        ({"goback_guidance": -1}, "goback_guidance", "greater than or equal to 0"),
        ({"name": "ddim", "network": "audio"}, "network", "'image' or 'video'"),
        ({"name": "ddim", "guidance_rule": "cfg++"}, "guidance_rule", "'cfg', 'apg' or 'cfg-zero'"),
        ({"name": "ddim", "solver": "lcm", "guidance_rule": "apg"}, "guidance_rule", "use solver 'ddim'"),
        ({"name": "ddim", "apg_eta": 1.1}, "apg_eta", "less than or equal to 1"),
        ({"name": "ddim", "apg_momentum": -1}, "apg_momentum", "greater than -1"),
        ({"name": "evs", "enlarge": 0.5}, "enlarge", "greater than or equal to 1"),
        ({"name": "evs", "image_interval": (0.6, 0.4)}, "image_interval", "image_interval (0.6, 0.4) must be [start"),
        ({"name": "euler"}, "name", "'iv-mixed', 'ddim', 'zigzag', 'freeinit', 'fused', 'evs' or 'official'"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused_with_its_name_and_the_way_out(
    settings: dict[str, object], field: str, way_out: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        SamplerSettings.model_validate(settings)
    error = raised.value.errors()[0]
    assert error["loc"][0] == field
    assert way_out in error["msg"]
