"""Scheduler settings of an entry: what it names, what its files say, and what is refused. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.jobs.timestep_spacing import Spacing
from tests.tiny_models import write_entry


def entry(folder: Path, *lines: str, files: dict[str, Any] | None = None) -> ModelEntry:
    for name, config in (files or {}).items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "scheduler_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return write_entry(folder, "animatediff", *lines)


@pytest.mark.parametrize("field", ["video_schedule", "image_schedule"])
@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ('beta_shedule = "linear"', "'beta_shedule'. Did you mean 'beta_schedule'?"),
        ("beta_strat = 0.1", "'beta_strat'. Did you mean 'beta_start'?"),
        ("skip_prk_steps = true", "Unknown key of {field}: 'skip_prk_steps'. It takes beta_schedule, "),
        ('beta_schedule = "lienar"', "'{field}.beta_schedule': 'lienar' is not possible, it must be one of 'linear'"),
        ('beta_start = "0.1"', "'{field}.beta_start': '0.1' is not possible, it must be a number"),
        ("beta_end = 1.5", "'{field}.beta_end': 1.5 is not possible, it must be less than 1"),
        ("num_train_timesteps = 0", "'{field}.num_train_timesteps': 0 is not possible, it must be at least 1"),
        ('prediction_type = "sample"', "it must be one of 'epsilon' or 'v_prediction'"),
        ("clip_sample = true", "'{field}.clip_sample': true is not possible, it must be one of False"),
        ("steps_offset = -1", "it must be at least 0"),
        ('timestep_spacing = "karras"', "it must be one of 'linspace', 'leading' or 'trailing'"),
    ],
)
def test_schedule_key_or_value_that_would_change_nothing_is_refused(
    tmp_path: Path, field: str, key: str, complaint: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        entry(tmp_path, f"{field} = {{ {key} }}")
    assert complaint.format(field=field) in raised.value.message
    assert str(tmp_path / "models.toml") in raised.value.message
    assert "\n" not in raised.value.message


def test_mistyped_keys_elsewhere_in_the_entry_are_suggested_too(tmp_path: Path) -> None:
    for line, meant in (
        ('spacing = { timestep_spacng = "linspace" }', "spacing.timestep_spacing"),
        ('vae_dtyp = "float32"', "vae_dtype"),
        ("optimise = { compil = true }", "optimise.compile"),
        ("sampler = { combinaton = 'I-I' }", "sampler.combination"),
    ):
        with pytest.raises(ConfigurationError, match=rf"models\.tiny: Unknown key.*Did you mean '{meant}'\?"):
            entry(tmp_path, line)


def test_run_is_what_the_entry_names_over_the_file_over_ddims_defaults(tmp_path: Path) -> None:
    files = {
        "scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "num_train_timesteps": 500},
        "image_scheduler": {"_class_name": "PNDMScheduler", "steps_offset": 1, "set_alpha_to_one": False},
    }
    video, image = (
        {"timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True, "num_train_timesteps": 500},
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "num_train_timesteps": 1000},
    )
    plain = entry(tmp_path, files=files)
    assert plain.spacing_of("video").model_dump() == video
    assert plain.spacing_of("image").model_dump() == image
    named = entry(tmp_path, "spacing = { steps_offset = 3 }", "image_schedule = { steps_offset = 2 }")
    assert named.spacing_of("video").model_dump() == video | {"steps_offset": 3}
    assert named.spacing_of("image").model_dump() == image | {"steps_offset": 2}
    (tmp_path / "image_scheduler" / "scheduler_config.json").unlink()
    (tmp_path / "image_scheduler").rmdir()
    assert entry(tmp_path).spacing_of("image") == plain.spacing_of("video")


def test_generation_records_the_spacing_of_the_network_that_it_runs_on(tmp_path: Path) -> None:
    files = {"scheduler": {"num_train_timesteps": 40}, "image_scheduler": {"timestep_spacing": "linspace"}}
    made = entry(tmp_path, files=files)
    video = made.resolve(VideoRequest(prompt="a circle"))
    image = made.resolve(VideoRequest(prompt="a circle", sampler={"name": "ddim", "network": "image"}))
    assert (video.spacing.num_train_timesteps, image.spacing.timestep_spacing) == (40, "linspace")
    with pytest.raises(InvalidParameter, match="num_inference_steps=41 is above the network's 40 timesteps"):
        made.resolve(VideoRequest(prompt="a circle", num_inference_steps=41))


@pytest.mark.parametrize("file", [None, "{", "[]", '{"num_train_timesteps": 0}', '{"steps_offset": null}'])
def test_api_without_readable_files_estimates_and_says_so_in_the_record(tmp_path: Path, file: str | None) -> None:
    made = entry(tmp_path, 'spacing = { timestep_spacing = "trailing" }', files={"scheduler": file} if file else {})
    generation = made.resolve(VideoRequest(prompt="a circle"))
    assert generation.spacing == Spacing(timestep_spacing="trailing", is_estimate=True)
    assert Generation.model_validate_json(generation.model_dump_json()) == generation


def test_entry_that_names_everything_is_no_estimate(tmp_path: Path) -> None:
    line = 'spacing = { timestep_spacing = "trailing", steps_offset = 0, set_alpha_to_one = true, '
    found = entry(tmp_path, line + "num_train_timesteps = 400 }").spacing_of("video")
    assert not found.is_estimate
    assert "is_estimate" not in found.model_dump_json()


@pytest.mark.parametrize(
    ("model", "spacing"),
    [("demo", "trailing"), ("animatediff", "linspace"), ("modelscope", "linspace"), ("videocrafter2", "linspace")],
)
def test_shipped_entries_run_the_same_steps_as_before_files_were_read(model: str, spacing: str) -> None:
    """Also on an API without weights: a record of version 0.1 had exactly this text."""
    for network in ("image", "video"):
        assert ModelRegistry.load().entry(model).spacing_of(network).model_dump_json() == (
            f'{{"timestep_spacing":"{spacing}","steps_offset":1,"set_alpha_to_one":false,"num_train_timesteps":1000}}'
        )
