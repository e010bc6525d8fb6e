"""How a worker tries to load its models again: pauses, what it reports when, and what it logs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.errors import ConfigurationError
from service.jobs.model_loads import ModelLoads
from service.process.heartbeat_file import HeartbeatFile
from service.settings import Settings
from service.wiring import Services
from worker.child.load_failures import INTERNAL_ERROR, MAX_SHOWN, OUT_OF_MEMORY, cannot_load, without_folders
from worker.messages import CannotLoad
from worker.parent import model_loader
from worker.parent.child_process import Channel, ChildDied, ModelsNotLoaded
from worker.parent.metrics import WorkerMetrics
from worker.parent.model_loader import DIED, MIN_FAILURES, PAUSES_S, ModelLoader, file_states

WRONG = ModelsNotLoaded(CannotLoad("/srv/unet is broken", "unet is broken", is_final=True))
FULL = ModelsNotLoaded(CannotLoad("OutOfMemoryError", OUT_OF_MEMORY))
KILLED = ChildDied("the child ended with exit code -9")


class FailingChild:
    """Fails to load as scripted, then loads. `seen` has what clients are shown at each attempt."""

    def __init__(self, loads: ModelLoads, *failures: ChildDied) -> None:
        self._loads, self._failures = loads, list(failures)
        self.device, self.is_loaded = "CPU", False
        self.seen: list[str | None] = []

    def ensure(self, beat: Callable[[], bool]) -> None:
        assert beat()
        self.seen.append(self._loads.failures(["demo"]).get("demo"))
        if self._failures:
            raise self._failures.pop(0)
        self.is_loaded = True

    def start(self, _run: object) -> Channel:
        raise NotImplementedError

    def kill(self) -> None: ...


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without waiting."""
    made: list[float] = []
    monkeypatch.setattr(ModelLoader, "_pause", lambda _self, seconds, _before: made.append(seconds))
    return made


def loader(child: FailingChild, services: Services, metrics: WorkerMetrics | None = None) -> ModelLoader:
    stopping, file = threading.Event(), HeartbeatFile()
    return ModelLoader(child, "demo", services.loads, metrics or WorkerMetrics(), file, stopping, [])


def load(services: Services, *failures: ChildDied) -> list[str | None]:
    """Load until it succeeds; returns what clients are shown at each attempt."""
    child = FailingChild(services.loads, *failures)
    assert loader(child, services).load()
    assert services.loads.failures(["demo"]) == {}
    return child.seen


@pytest.mark.usefixtures("pauses")
class TestReports:
    def test_wrong_files_are_reported_at_once(self, services: Services) -> None:
        assert load(services, WRONG, WRONG) == [None, "unet is broken", "unet is broken"]

    @pytest.mark.parametrize(("failure", "shown"), [(FULL, OUT_OF_MEMORY), (KILLED, DIED)])
    def test_what_may_pass_is_reported_when_it_repeats(
        self, services: Services, failure: ChildDied, shown: str
    ) -> None:
        assert load(services, *[failure] * (MIN_FAILURES - 1)) == [None] * MIN_FAILURES
        assert load(services, *[failure] * MIN_FAILURES) == [*[None] * MIN_FAILURES, shown]

    def test_the_metric_counts_failures_until_it_is_loaded(self, services: Services) -> None:
        metrics = WorkerMetrics()
        child = FailingChild(services.loads, WRONG, WRONG)
        counted: list[float | None] = []
        ensure = child.ensure

        def counting(beat: Callable[[], bool]) -> None:
            counted.append(metrics.registry.get_sample_value("ivmix_worker_load_failures"))
            ensure(beat)

        child.ensure = counting  # type: ignore[method-assign]
        assert loader(child, services, metrics).load()
        assert counted == [0, 1, 2]
        assert metrics.registry.get_sample_value("ivmix_worker_load_failures") == 0

    def test_each_reason_is_logged_once(self, services: Services, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR):
            load(services, WRONG, WRONG, KILLED, KILLED, WRONG)
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
            "/srv/unet is broken",
            "the child ended with exit code -9",
            "/srv/unet is broken",
        ]


def test_pauses_grow_up_to_a_minute(services: Services, pauses: list[float]) -> None:
    load(services, *[WRONG] * 7)
    assert pauses == [*PAUSES_S, 60.0, 60.0]


def test_a_change_of_the_files_ends_a_pause_when_it_is_complete(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "POLL_S", 0.01)
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "weights"
    file.write_text("broken")
    child = FailingChild(services.loads, WRONG)
    retrying = loader(child, services)
    retrying.files = [tmp_path / "unet", tmp_path / "missing"]
    fails, sizes = child.ensure, list[int]()

    def ensure(beat: Callable[[], bool]) -> None:
        sizes.append(file.stat().st_size)
        try:
            fails(beat)
        except ChildDied:
            threading.Timer(0.2, lambda: file.write_text("repaired now")).start()
            raise

    child.ensure = ensure  # type: ignore[method-assign]
    assert retrying.load()
    assert sizes == [6, 12]


def test_files_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    states = file_states([tmp_path / "a", tmp_path / "none"])
    assert [(path.name, size) for path, (_, size) in states.items()] == [("a", 5)]


class TestMessages:
    def test_clients_see_no_folder_of_the_server(self, tmp_path: Path) -> None:
        models = tmp_path / "our models" / "sd"
        registry = tmp_path / "our models" / "models.toml"
        settings = Settings(data_dir=tmp_path / "data", models_file=registry)
        for message, shown in {
            f"{settings.weights_dir}/a--b/unet/x.safetensors is cut off": "a--b/unet/x.safetensors is cut off",
            f"models file {registry}: no family": "models file models.toml: no family",
            "'/srv/models/sd/unet/config.json' is not JSON": "'unet/config.json' is not JSON",
            "see ~/.cache/hub/models/x.json, or /etc/passwd": "see models/x.json, or etc/passwd",
            "9/10 shards; `ivmix models fetch a/b` loads them": "9/10 shards; `ivmix models fetch a/b` loads them",
        }.items():
            failure = cannot_load(ConfigurationError(message), settings)
            assert (failure.reason, failure.is_final) == (message, True)
            assert failure.shown == shown
        assert without_folders(f"{models}/vae\nlacks  x", [models.parent]) == "sd/vae lacks x"
        assert len(without_folders("x" * 10_000, [])) == MAX_SHOWN

    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            (torch.OutOfMemoryError("tried to allocate 80 GiB"), OUT_OF_MEMORY),
            (MemoryError(), OUT_OF_MEMORY),
            (KeyError("secret"), INTERNAL_ERROR),
        ],
    )
    def test_other_failures_may_pass_and_show_no_details(self, error: Exception, shown: str) -> None:
        failure = cannot_load(error, Settings())
        assert (failure.shown, failure.is_final) == (shown, False)
        assert type(error).__name__ in failure.reason
        assert bool(failure.details) == (shown == INTERNAL_ERROR)
