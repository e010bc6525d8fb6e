"""What a process does about `optimise = "auto"` when its models are loaded: takes a result that is there, or tunes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Configuration
from service.errors import ConfigurationError
from service.process.folder_lock import FolderInUse
from service.settings import Settings
from worker.child.engine import Engine
from worker.child.failures import is_broken
from worker.child.tuning.calls import Clock, fitting_calls
from worker.child.tuning.record import TuningFiles, TuningKey, TuningRecord, write
from worker.child.tuning.tuner import Changes, Tuner, candidates

log = logging.getLogger("ivmix.child")

Save = Callable[[TuningRecord], None]
ENDED = "its process ended, or was ended because time was up"
BEGUN_SHARE = 0.8  # of the limit; what is begun later could not be finished


def use_stored(engine: Engine, entry: ModelEntry, settings: Settings) -> bool:
    """Run the networks as an earlier measurement says. False if there is none, or the models file chooses."""
    if entry.optimise is not None:
        return False
    record = TuningFiles(settings, TuningKey.of(engine)).read()
    return record is not None and record.is_finished and _use(engine, record, "runs as tuned before")


def configure(
    engine: Engine, entry: ModelEntry, settings: Settings, limit_s: float, announce: Callable[[float], None]
) -> None:
    """Of a worker: as measured before; else, on a GPU, `tune_at_start`. On a CPU only `ivmix models tune` measures."""
    if not use_stored(engine, entry, settings) and engine.models.device.type == "cuda":
        tune_at_start(engine, settings, limit_s, announce)


def tune_at_start(
    engine: Engine,
    settings: Settings,
    limit_s: float,
    announce: Callable[[float], None],
    tried: Sequence[Changes] = (),
    clock: Clock = time.perf_counter,
) -> None:
    """Measure once, at the first start with a model on a card. A later start finds the result, as does one after a
    start that was ended because a configuration took too long: then the fastest before it is taken.

    Args:
        limit_s: after so many seconds this process may be ended; if there are none left, nothing is measured.
        announce: called with the seconds before the first configuration.
        tried, clock: see `tune`.
    """
    began, files = time.monotonic(), TuningFiles(settings, TuningKey.of(engine))
    try:
        with files.locked(max(limit_s, 0.0)) as folder:
            record, left = files.read(), limit_s - (time.monotonic() - began)
            if record is None and left <= 0:
                name = engine.models.entry.id
                log.warning(
                    "no time is left for tuning %s: running with the defaults; `ivmix models tune %s`", name, name
                )
                return
            if record is None:
                announce(left)
                record = tune(engine, BEGUN_SHARE * left, lambda found: write(found, folder), tried, clock)
            elif not record.is_finished:
                record = record.failed(ENDED)
                write(record, folder)
            _use(engine, record, "tuned")
    except FolderInUse:
        log.warning("another process is still tuning %s: running with the defaults", engine.models.entry.id)


def tune(
    engine: Engine,
    limit_s: float,
    save: Save = lambda _record: None,
    tried: Sequence[Changes] = (),
    clock: Clock = time.perf_counter,
) -> TuningRecord:
    """Measure the configurations of a loaded model, and run it with the fastest. If not even the first can be measured,
    it stays.

    Args:
        limit_s: after so many seconds no configuration is begun.
        save: called with the record before and after every configuration.
        tried: what is tried; empty: `candidates` of the model.
        clock: see `MeasuredCalls`.
    """
    began, first = time.monotonic(), engine.configuration.optimise
    key, device = TuningKey.of(engine), engine.models.device
    record = TuningRecord(key=key, chosen=first, measured_frames=key.clip[2], trying=first)
    save(record)
    try:
        calls, reference = fitting_calls(engine, clock)
    except Exception as e:
        if is_broken(e, device):
            raise
        log.warning("%s cannot be tuned", key.model, exc_info=e)
        record = record.failed(f"{type(e).__name__}: {e}")
        save(record)
    else:
        record = record.model_copy(update={"measured_frames": calls.generation.num_frames})
        record = Tuner(calls, reference, device, limit_s, save, began).run(record, tried or candidates(engine.models))
    engine.free_memory()
    return record


def _use(engine: Engine, record: TuningRecord, how: str) -> bool:
    """One line in the log; False if this machine lacks what the result needs."""
    configuration, before = Configuration(source="tuned", optimise=record.chosen), engine.configuration
    try:
        if record.chosen != before.optimise:
            engine.use(configuration)
    except ConfigurationError as e:
        log.warning("%s runs with the defaults: %s", record.key.model, e.message)
        return False
    engine.configuration = configuration
    log.info("%s %s on %s: %s", record.key.model, how, record.key.card, record.summary)
    return True
