"""The parent's end of a job's pipe, and the start of a child whose fork server is slow or ends."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
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
    process.join()
    with pytest.raises(ChildDied, match="exit code 0"):
        channel.receive(1.0)


def tune_forever(control: Connection, settings: Settings, _model: str) -> None:
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


# The fork server imports `preloaded` from a temporary folder: one per process, so these have their own.
START = """
import time
from service.settings import Settings
from worker.parent import child_process

def enter(control, settings, model):
    time.sleep(60)

if __name__ == "__main__":
    child_process.FORK_SERVER = "preloaded"
    child = child_process.ChildProcess(Settings(), "demo", enter)
"""
DIES = """
    try:
        child.ensure(lambda: True)
    except child_process.ChildDied as e:
        print(e)
"""
ENDED = "the process that imports torch for the child has ended, or hung and was ended"
HANGS = """
import os, sys, time
from worker.child import fork_server

fork_server.IMPORT_TIMEOUT_S = 0.5

class Finder:
    def find_spec(self, name, *_):
        if name in ("worker.child.engine", "worker.child.main"):
            if os.path.exists("hung"):
                raise ImportError(name)
            open("hung", "w").close()
            time.sleep(3600)

sys.meta_path.insert(0, Finder())
"""
LOADS_AGAIN = """
    child, said = child_process.ChildProcess(Settings(), "demo"), ""
    while "exit code" not in said:
        try:
            child.ensure(lambda: True)
        except child_process.ChildDied as e:
            said = str(e)
        print(said)
        time.sleep(1)  # until the first one has ended altogether
"""
ABANDONED = """
    child.ensure(iter([True, True, False]).__next__)
    start = child._start
    child.kill()
    print("stopped waiting" if start.is_alive() else "it was not slow")
    open("go", "w").close()
    start.join(120)
    print("alive" if start._control.process.is_alive() else "killed")
"""


def started(folder: Path, preloaded: str, program: str) -> list[str]:
    (folder / "preloaded.py").write_text(preloaded)
    (folder / "program.py").write_text(START + program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(Path(__file__).parents[3])))}
    run = [sys.executable, "program.py"]
    ran = subprocess.run(run, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return ran.stdout.splitlines()


def test_fork_server_that_ends_while_it_imports_is_a_dead_child(tmp_path: Path) -> None:
    preloaded = "import os\nos._exit(3)"
    assert started(tmp_path, preloaded, DIES) == [ENDED]


def test_fork_server_that_hangs_in_an_import_ends_and_another_one_is_started(tmp_path: Path) -> None:
    """The second one can import as little, but forks: its child has an exit code."""
    said = started(tmp_path, HANGS, LOADS_AGAIN)
    assert (said[0], said[-1]) == (ENDED, "the child ended with exit code 1")


def test_child_whose_start_was_abandoned_is_killed_when_it_runs(tmp_path: Path) -> None:
    preloaded = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"
    assert started(tmp_path, preloaded, ABANDONED) == ["stopped waiting", "killed"]
