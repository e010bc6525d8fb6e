"""The parent's end of a job's pipe."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from tests.factories import make_job, make_output
from worker.messages import Done, Run, Stop
from worker.parent.child_process import ChildDied, PipeChannel


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
