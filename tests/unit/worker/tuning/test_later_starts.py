"""What later starts, and the command, make of a result of tuning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.catalog.optimise import Configuration, Optimise
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from service.settings import Settings, load_settings
from tests.fake_configurations import APART, FAST, LIMIT_S, FakeConfigurations, enter_hanging
from tests.tiny_models import save_model, write_entry
from tests.unit.worker.tuning.conftest import Load
from worker.child.tuning.record import FILE, Measured, TuningFiles, TuningKey, TuningRecord, write
from worker.child.tuning.start import ENDED, configure, tune_at_start, use_stored
from worker.parent.child_process import ChildProcess
from worker.tune import app


def keep(record: TuningRecord, settings: Settings) -> Path:
    with TuningFiles(settings, record.key).locked(0) as folder:
        assert folder is not None
        write(record, folder)
    return folder / FILE


def at_start(engine: FakeConfigurations, settings: Settings) -> list[float]:
    """What was announced: empty if nothing was measured."""
    announced: list[float] = []
    tune_at_start(engine, settings, LIMIT_S, announced.append, [FAST], engine.clock)
    return announced


def test_second_start_tunes_nothing(load: Load, own: Settings) -> None:
    first, second = load(), load()
    assert at_start(first, own)
    assert not at_start(second, own)
    assert first.configuration == second.configuration
    assert second.configuration.source == "tuned"
    assert second.models.optimise == Optimise(guidance_halves="apart")
    third = load()
    assert use_stored(third, third.models.entry, own)
    assert third.configuration == first.configuration


def test_worker_on_a_cpu_measures_nothing_but_uses_what_the_command_has_measured(
    load: Load, measured: TuningRecord, own: Settings
) -> None:
    started = load()
    entry = started.models.entry
    configure(started, entry, own, LIMIT_S, lambda _s: pytest.fail("it tunes"))
    assert started.configuration == Configuration(source="default", optimise=Optimise())
    keep(measured, own)
    configure(started, entry, own, LIMIT_S, lambda _s: pytest.fail("it tunes"))
    assert started.configuration == Configuration(source="tuned", optimise=measured.chosen)


def test_table_in_the_models_file_is_run_as_it_is(load: Load, measured: TuningRecord, own: Settings) -> None:
    keep(measured, own)
    other = load()
    assert not use_stored(other, other.models.entry.model_copy(update={"optimise": Optimise()}), own)
    assert other.configuration.source == "default"
    assert use_stored(other, other.models.entry, own)


@pytest.mark.parametrize("changed", ["versions", "driver", "card", "weights"])
def test_what_was_measured_elsewhere_is_not_used(
    load: Load, measured: TuningRecord, own: Settings, changed: str
) -> None:
    value = {"torch": "1.0"} if changed == "versions" else "another"
    key = measured.key.model_copy(update={changed: value})
    keep(measured.model_copy(update={"key": key}), own)
    other = load()
    assert not use_stored(other, other.models.entry, own)
    if changed == "versions":
        assert at_start(other, own)


@pytest.mark.parametrize("content", ["", "{", '{"key": 1}', "another model's"])
def test_damaged_or_foreign_file_is_ignored_with_one_line_and_tuned_again(
    load: Load,
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
        assert at_start(load(), own)
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
    load: Load, measured: TuningRecord, own: Settings
) -> None:
    keep(measured.model_copy(update={"trying": Optimise(compile=True)}), own)
    resumed = load()
    assert not use_stored(resumed, resumed.models.entry, own)  # another process might be tuning
    assert not at_start(resumed, own)
    assert resumed.configuration.optimise == Optimise(guidance_halves="apart")
    kept = TuningFiles(own, measured.key).read()
    assert kept is not None
    assert kept.is_finished
    assert kept.results[-1] == Measured(optimise=Optimise(compile=True), problem=ENDED)


def test_start_without_time_left_runs_with_the_defaults(
    load: Load, own: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    late = load()
    tune_at_start(late, own, 0.0, lambda _s: pytest.fail("it tunes"), [FAST])
    assert late.configuration.source == "default"
    assert "ivmix models tune tiny" in caplog.text


def test_start_next_to_a_process_that_tunes_the_same_does_not_wait_longer_than_its_limit(
    load: Load, own: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    late = load()
    with TuningFiles(own, TuningKey.of(late)).locked(0):
        tune_at_start(late, own, 0.1, lambda _s: pytest.fail("it tunes"), [FAST])
    assert late.configuration.source == "default"
    assert "another process is still tuning tiny" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
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
    assert {"default", APART, "channels_last=true", "compile=true"} <= set(rows)
    assert "not tried" not in shown
    assert "Error" not in rows["compile=true"]
    assert shown.count("taken") == 1
    assert "image ms" in shown


def test_command_refuses_a_model_with_a_table(monkeypatch: pytest.MonkeyPatch, own: Settings) -> None:
    folder = own.data_dir / "model"
    save_model("animatediff", folder)
    write_entry(folder, "animatediff", "optimise = { compile = true }")
    monkeypatch.setenv("IVMIX_MODELS_FILE", str(folder / "models.toml"))
    with pytest.raises(ConfigurationError, match='or write optimise = "auto"'):
        CliRunner().invoke(app, ["tiny"], catch_exceptions=False)
