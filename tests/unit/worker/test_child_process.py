"""The parent's end of a job's pipe."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from service.catalog.optimise import Configuration, Optimise
from service.settings import Settings
from tests.factories import make_job, make_output
from worker.messages import Done, Ready, Run, Stop, Tuning
from worker.parent.child_process import ChildDied, ChildProcess, PipeChannel

TUNED = Configuration(source="tuned", optimise=Optimise(channels_last=True))


@pytest.mark.parametrize("is_run_read", [True, False])
def test_stop_that_crosses_the_last_report_loses_nothing(is_run_read: bool) -> None:
    """Regression: the child has closed the pipe; it is healthy, and its video is stored."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    process.start()
    channel = PipeChannel(ours, process)
    channel.send(Run(make_job(), "e1"))
    if is_run_read:
        theirs.recv()
    done = Done(make_output(), {}, None)
    theirs.send(done)
    theirs.close()
    channel.send(Stop(save_checkpoint=False))
    assert channel.receive(1.0) == done
    with pytest.raises(ChildDied, match="exit code 0"):
        channel.receive(1.0)


def tune_forever(control: Connection, _parent: int, settings: Settings, _model: str) -> None:
    """A child that hangs while it tunes, if it may tune."""
    if settings.tune_s:
        control.send(Tuning(0.1))
        time.sleep(3600)
    control.send(Ready(1.0, "no device", TUNED))
    time.sleep(3600)


def test_child_that_hangs_while_it_tunes_is_replaced_by_one_that_does_not_tune(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = ChildProcess(Settings(data_dir=tmp_path, auth="off"), "demo", tune_forever)
    try:
        child.ensure(lambda: True)
        assert child.is_loaded
        assert child.configuration == TUNED
        assert "tuning demo did not end in time" in caplog.text
    finally:
        child.kill()
