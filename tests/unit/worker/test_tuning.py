"""Tuning with the real networks of a tiny model: which configuration is taken, and what later starts find."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from service.catalog.optimise import Configuration, Optimise
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
from tests.fake_configurations import (
    FAST,
    OTHER,
    Clock,
    FakeConfigurations,
    Fault,
    adds,
    costs_nothing,
    enter_hanging,
    gives_nan,
    runs_out,
)
from tests.tiny_models import save_model, write_entry
from worker.child.tuning.float32 import float32
from worker.child.tuning.record import FILE, Measured, TuningFiles, TuningKey, TuningRecord, write
from worker.child.tuning.start import ENDED, tune, tune_at_start, use_stored
from worker.child.tuning.tuner import MIN_GAIN, Tuner, candidates
from worker.networks.network_classes import errors_only
from worker.parent.child_process import ChildProcess
from worker.tune import app

LIMIT_S = 3600.0
APART, RELAID = 'guidance_halves="apart"', "channels_last=true"
BOTH = f"{RELAID}, {APART}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> FakeConfigurations:
    return FakeConfigurations(save_model("animatediff", tmp_path_factory.mktemp("tuning") / "model"), {})


@pytest.fixture
def engine(loaded: FakeConfigurations) -> Callable[..., FakeConfigurations]:
    """engine({text of a configuration: fault}) gives what a new process has loaded."""

    def load(faults: Mapping[str, Fault] | None = None) -> FakeConfigurations:
        found = copy.copy(loaded)
        found.use(Configuration.of(None))
        found.faults = {APART: costs_nothing} if faults is None else faults
        found.clock = Clock()
        return found

    return load


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", auth="off")


@pytest.fixture(scope="module")
def measured(loaded: FakeConfigurations) -> TuningRecord:
    """A finished record of the model, which took FAST."""
    found = copy.copy(loaded)
    found.faults = {APART: costs_nothing}
    return tune(found, LIMIT_S, tried=[FAST], clock=found.clock)


def keep(record: TuningRecord, settings: Settings) -> Path:
    with TuningFiles(settings, record.key).locked(0) as folder:
        assert folder is not None
        write(record, folder)
    return folder / FILE


def at_start(engine: FakeConfigurations, settings: Settings, tried: Any = (FAST,)) -> list[float]:
    """What was announced: empty if nothing was measured."""
    announced: list[float] = []
    tune_at_start(engine, settings, LIMIT_S, announced.append, tried, engine.clock)
    return announced


def measure(engine: FakeConfigurations, *tried: Any) -> TuningRecord:
    return tune(engine, LIMIT_S, tried=tried, clock=engine.clock)


def test_fastest_configuration_is_taken_and_run(engine: Callable[..., FakeConfigurations]) -> None:
    tuned = engine()
    record = measure(tuned, OTHER, FAST)
    assert record.chosen == Optimise(guidance_halves="apart") == tuned.configuration.optimise
    assert tuned.models.optimise == record.chosen
    first, _, best = record.results
    assert first.milliseconds == pytest.approx({"image": 30, "video": 30})
    assert first.seconds_per_clip == pytest.approx(
        0.03 * sum(tuned.plan(tuned.models.entry.default_generation).calls.values())
    )
    assert best.seconds_per_clip == 0
    assert not any(result.problem for result in record.results)
    assert all(result.error is not None and result.error < 1e-5 for result in record.results)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (adds, "differs by 1.0e-02 from float32, allowed are 1.0e-05"),
        (gives_nan, "its predictions are not finite"),
        (runs_out, "OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_configuration_with_a_fault_is_listed_with_its_reason_and_not_taken(
    engine: Callable[..., FakeConfigurations], fault: Fault, reason: str
) -> None:
    tuned = engine({APART: fault, RELAID: costs_nothing})
    record = measure(tuned, FAST, OTHER)
    assert [result.problem for result in record.results] == ["", reason, ""]
    assert record.chosen == Optimise(channels_last=True) == tuned.models.optimise


def test_later_configurations_change_the_fastest_before_them_and_none_is_measured_twice(
    engine: Callable[..., FakeConfigurations],
) -> None:
    tuned = engine(
        {
            APART: costs_nothing,
        }
    )
    record = measure(tuned, FAST, OTHER, FAST, {"channels_last": False})
    assert [str(result.optimise) for result in record.results] == ["default", APART, BOTH]
    assert record.chosen == tuned.models.optimise == Optimise(guidance_halves="apart")


def test_nothing_is_tuned_where_the_first_configuration_cannot_be_measured(
    engine: Callable[..., FakeConfigurations],
) -> None:
    tuned = engine({"default": runs_out, APART: costs_nothing})
    record = measure(tuned, FAST)
    assert record.is_finished
    assert record.chosen == Optimise() == tuned.configuration.optimise
    assert [result.problem for result in record.results] == ["OutOfMemoryError: CUDA out of memory"]


def test_no_configuration_begins_after_the_limit(engine: Callable[..., FakeConfigurations]) -> None:
    record = tune(engine(), 0.0, tried=[FAST])
    assert [result.problem for result in record.results] == ["", "not tried: 0 s were left"]
    assert record.chosen == Optimise()


class GivenTimes:
    """Calls that take as long as the test says, in milliseconds by configuration."""

    per_clip = {"image": 100, "video": 0}

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.used = times, list[str]()

    def use(self, optimise: Optimise) -> None:
        self.used.append(str(optimise))

    def predictions(self) -> dict[str, torch.Tensor]:
        return {"image": torch.ones(3)}

    def milliseconds(self) -> dict[str, float]:
        return {"image": self.times[self.used[-1]]}


@pytest.mark.parametrize(("gain", "taken"), [(MIN_GAIN / 2, "default"), (2 * MIN_GAIN, APART)])
def test_gain_within_the_noise_changes_nothing(
    engine: Callable[..., FakeConfigurations], gain: float, taken: str
) -> None:
    calls = GivenTimes({"default": 100.0, APART: 100 * (1 - gain)})
    key = TuningKey.of(engine())
    tuner = Tuner(calls, calls.predictions(), torch.device("cpu"), LIMIT_S, lambda _record: None)
    record = tuner.run(TuningRecord(key=key, chosen=Optimise(), measured_frames=1), [FAST])
    assert str(record.chosen) == calls.used[-1] == taken
    assert record.results[0].seconds_per_clip == 10.0


def in_bfloat16(engine: FakeConfigurations) -> FakeConfigurations:
    """As on a GPU. The networks are copies: the others stay in float32."""
    nets = copy.deepcopy((engine.models.optimised_image_unet, engine.models.optimised_video_unet))
    for network in nets:
        with errors_only("diffusers"):
            network.network.to(torch.bfloat16)
    image, video = nets
    changes = {"dtype": torch.bfloat16, "optimised_image_unet": image, "optimised_video_unet": video}
    engine.models = replace(engine.models, **changes)  # type: ignore[type-var]
    return engine


def test_half_precision_may_differ_from_float32_as_much_as_its_own_rounding(
    engine: Callable[..., FakeConfigurations],
) -> None:
    tuned = in_bfloat16(engine({APART: adds, RELAID: costs_nothing}))
    first, wrong, right = measure(tuned, FAST, OTHER).results
    assert first.error is not None
    assert 1e-3 < first.error < 2e-2
    assert wrong.problem.endswith(f"allowed are {1.2 * first.error:.1e}")
    assert right.error is not None
    assert not right.problem
    assert tuned.models.optimise == right.optimise


@torch.no_grad()
def test_reference_is_what_float32_gives_with_the_same_weights(loaded: FakeConfigurations) -> None:
    half = copy.deepcopy(loaded.models.image_unet).to(torch.bfloat16)
    whole = copy.deepcopy(half).float()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    with float32():
        found = half(x, torch.tensor(500), encoder_hidden_states=text.bfloat16()).sample
    expected = whole(x, torch.tensor(500), encoder_hidden_states=text.bfloat16().float()).sample
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)
    assert next(half.parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_candidates_are_few_and_compile_last(loaded: FakeConfigurations, device: str) -> None:
    found = candidates(replace(loaded.models, device=torch.device(device)))  # type: ignore[type-var]
    assert 4 <= len(found) <= 7
    compiled = [bool(changes.get("compile")) for changes in found]
    assert compiled == sorted(compiled)
    for changes in found:
        Optimise.model_validate(changes)


# -- later starts


def test_second_start_tunes_nothing(engine: Callable[..., FakeConfigurations], own: Settings) -> None:
    first, second = engine(), engine()
    assert at_start(first, own)
    assert not at_start(second, own)
    assert first.configuration == second.configuration
    assert second.configuration.source == "tuned"
    assert second.models.optimise == Optimise(guidance_halves="apart")
    third = engine()
    assert use_stored(third, third.models.entry, own)
    assert third.configuration == first.configuration


def test_table_in_the_models_file_is_run_as_it_is(
    engine: Callable[..., FakeConfigurations], measured: TuningRecord, own: Settings
) -> None:
    keep(measured, own)
    other = engine()
    assert not use_stored(other, other.models.entry.model_copy(update={"optimise": Optimise()}), own)
    assert other.configuration.source == "default"
    assert use_stored(other, other.models.entry, own)


@pytest.mark.parametrize("changed", ["versions", "driver", "card", "weights"])
def test_what_was_measured_elsewhere_is_not_used(
    engine: Callable[..., FakeConfigurations], measured: TuningRecord, own: Settings, changed: str
) -> None:
    value = {"torch": "1.0"} if changed == "versions" else "another"
    key = measured.key.model_copy(update={changed: value})
    keep(measured.model_copy(update={"key": key}), own)
    other = engine()
    assert not use_stored(other, other.models.entry, own)
    if changed == "versions":
        assert at_start(other, own)


@pytest.mark.parametrize("content", ["", "{", '{"key": 1}', "another model's"])
def test_damaged_or_foreign_file_is_ignored_with_one_line_and_tuned_again(
    engine: Callable[..., FakeConfigurations],
    measured: TuningRecord,
    own: Settings,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    file = keep(measured, own)
    if content == "another model's":
        other = measured.key.model_copy(update={"model": "another"})
        content = measured.model_copy(update={"key": other}).model_dump_json()
    file.write_text(content)
    assert TuningFiles(own, measured.key).read() is None
    assert len([r for r in caplog.records if str(file) in r.getMessage() and r.levelno == logging.WARNING]) == 1
    if content == "{":
        assert at_start(engine(), own)
        assert TuningFiles(own, measured.key).read() is not None


def test_result_is_kept_in_the_data_folder_where_the_weights_cannot_be_written(
    measured: TuningRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "weights"
    weights.write_text("not even a folder")
    settings = Settings(data_dir=tmp_path / "data", weights_dir=weights, auth="off")
    file = keep(measured, settings)
    assert file.is_relative_to(settings.data_dir)
    assert f"{weights}/tuned" in caplog.text
    assert TuningFiles(settings, measured.key).read() == measured


def test_start_after_one_that_was_ended_takes_the_fastest_before_and_tunes_nothing(
    engine: Callable[..., FakeConfigurations], measured: TuningRecord, own: Settings
) -> None:
    keep(measured.model_copy(update={"trying": Optimise(compile=True)}), own)
    resumed = engine()
    assert not use_stored(resumed, resumed.models.entry, own)  # another process might be tuning
    assert not at_start(resumed, own)
    assert resumed.configuration.optimise == Optimise(guidance_halves="apart")
    kept = TuningFiles(own, measured.key).read()
    assert kept is not None
    assert kept.is_finished
    assert kept.results[-1] == Measured(optimise=Optimise(compile=True), problem=ENDED)


def test_start_without_time_left_runs_with_the_defaults(
    engine: Callable[..., FakeConfigurations], own: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    late = engine()
    tune_at_start(late, own, 0.0, lambda _s: pytest.fail("it tunes"), [FAST])
    assert late.configuration.source == "default"
    assert "ivmix models tune tiny" in caplog.text


def test_start_next_to_a_process_that_tunes_the_same_does_not_wait_longer_than_its_limit(
    engine: Callable[..., FakeConfigurations], own: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    late = engine()
    with TuningFiles(own, TuningKey.of(late)).locked(0):
        tune_at_start(late, own, 0.1, lambda _s: pytest.fail("it tunes"), [FAST])
    assert late.configuration.source == "default"
    assert "another process is still tuning tiny" in caplog.text


def test_configuration_that_hangs_ends_with_the_limit_and_the_next_child_takes_the_fastest_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real parent and its children."""
    settings = Settings(data_dir=tmp_path, auth="off", tune_s=600)
    save_model("animatediff", settings.weights_dir / "model")
    child = ChildProcess(settings, "tiny", enter_hanging)
    try:
        with caplog.at_level(logging.INFO):
            child.ensure(lambda: True)
        assert child.is_loaded
        expected = Optimise(guidance_halves="apart")
        assert child.configuration == Configuration(source="tuned", optimise=expected)
        assert "tuning tiny did not end in time" in caplog.text
    finally:
        child.kill()
    (file,) = (settings.weights_dir / "tuned").glob(f"*/{FILE}")
    kept = TuningRecord.model_validate_json(file.read_text())
    assert [bool(result.problem) for result in kept.results] == [False, False, True]


# -- ivmix models tune


def command(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> str:
    save_model("animatediff", settings.data_dir / "model")
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(settings.data_dir / "model" / "models.toml"))
    monkeypatch.setenv("IVMIX_DATA_DIR", str(settings.data_dir))
    done = CliRunner().invoke(app, ["tiny", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_command_measures_within_its_limit_and_later_starts_use_the_result(
    monkeypatch: pytest.MonkeyPatch, own: Settings
) -> None:
    """Compiling is not begun: it is expected to take longer."""
    record = TuningRecord.model_validate_json(command(monkeypatch, own, "--json", "--seconds", "1"))
    assert record.is_finished
    assert not record.results[0].problem
    assert all(result.problem.startswith("not tried") for result in record.results if result.optimise.compile)
    entry = ModelRegistry.of(load_settings()).get("tiny")
    started = FakeConfigurations(entry, {})
    assert use_stored(started, entry, own)
    assert started.configuration == Configuration(source="tuned", optimise=record.chosen)


@pytest.mark.slow
def test_command_prints_what_each_configuration_takes_and_compiles_the_last(
    monkeypatch: pytest.MonkeyPatch, own: Settings
) -> None:
    shown = command(monkeypatch, own)
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert {"default", APART, RELAID, "compile=true"} <= set(rows)
    assert "not tried" not in shown
    assert "Error" not in rows["compile=true"]
    assert shown.count("taken") == 1
    assert "ms per call, image" in shown


def test_command_refuses_a_model_with_a_table(monkeypatch: pytest.MonkeyPatch, own: Settings) -> None:
    folder = own.data_dir / "model"
    save_model("animatediff", folder)
    write_entry(folder, "animatediff", "optimise = { compile = true }")
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(folder / "models.toml"))
    with pytest.raises(ConfigurationError, match='table optimise.*or write optimise = "auto"'):
        CliRunner().invoke(app, ["tiny"], catch_exceptions=False)
