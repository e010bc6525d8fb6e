"""`context_windows` of a models file: what it allows requests to ask for, and the mistakes that are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.context_windows import ContextWindows
from service.jobs.model import Generation
from tests.factories import make_request
from tests.tiny_models import ENTRY


def entry(folder: Path, line: str, family: str = "animatediff", longest: int = 64) -> ModelEntry:
    file = folder / "models.toml"
    table = ENTRY.format(family=family).replace("max = 8 }", f"max = {longest} }}")
    file.write_text(f"[models.m]{table}{line}\n")
    return ModelRegistry.load(file, weights_dir=folder).known["m"]


def test_defaults_are_those_of_diffusers(tmp_path: Path) -> None:
    found = entry(tmp_path, "context_windows = {}").context_windows
    assert found is not None
    assert found.model_dump() == {
        "length": 16,
        "stride": 4,
        "weighting_scheme": "pyramid",
        "noise_type": "shuffle_context",
    }


@pytest.mark.parametrize("family", ["animatediff", "animatediff-sdxl"])
def test_generation_names_the_windows_if_its_clip_needs_them(tmp_path: Path, family: str) -> None:
    """Shorter clips have the record, and so the checkpoints, of a model without windows."""
    windows, none = (entry(tmp_path, line, family) for line in ("context_windows = { stride = 8 }", ""))
    long = windows.resolve(make_request(num_frames=17, seed=1))
    assert long.context_windows == ContextWindows(stride=8)
    assert Generation.model_validate_json(long.model_dump_json()) == long
    short = make_request(num_frames=16, seed=1)
    assert windows.resolve(short) == none.resolve(short)
    assert "context_windows" not in windows.resolve(short).model_dump_json()
    with pytest.raises(InvalidParameter, match=r"num_frames=65 is outside 1\.\.64"):
        windows.resolve(make_request(num_frames=65))


def test_seconds_reach_as_far_as_num_frames(tmp_path: Path) -> None:
    made = entry(tmp_path, "context_windows = {}").resolve(make_request(seconds="8"))
    assert (made.num_frames, made.fps, made.context_windows) == (64, 8, ContextWindows())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{ length = 8, stride = 9 }", "context_windows: stride=9 is above length=8: frames between windows have none"),
        ("{ length = 0 }", "context_windows.length=0: Input should be greater than or equal to 1"),
        ("{ stride = 0 }", "context_windows.stride=0: Input should be greater than or equal to 1"),
        ("{ lenght = 8 }", "context_windows.lenght.*context_windows.length"),
        ('{ noise_type = "shuffle" }', "context_windows.noise_type='shuffle': Input should be 'shuffle_context'"),
        ('{ weighting_scheme = "linear" }', "context_windows.weighting_scheme='linear': Input should be 'flat'"),
        ("16", "context_windows=16"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        entry(tmp_path, f"context_windows = {line}")


@pytest.mark.parametrize("family", ["modelscope", "videocrafter"])
def test_families_without_motion_modules_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"context_windows are for motion modules, and family {family} has none"
    ):
        entry(tmp_path, "context_windows = {}", family)


@pytest.mark.parametrize(
    ("num_frames", "starts"),
    [(16, [0]), (24, [0, 4, 8]), (25, [0, 4, 8, 9]), (17, [0, 1]), (20, [0, 4])],
)
def test_last_window_ends_with_the_clip(num_frames: int, starts: list[int]) -> None:
    assert list(ContextWindows().starts(num_frames)) == starts
