"""The parent's end of a job's pipe, and the start of a child whose fork server is slow or ends."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

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
    process.join()
    with pytest.raises(ChildDied, match="exit code 0"):
        channel.receive(1.0)


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
    assert started(tmp_path, preloaded, DIES) == ["the process that imports torch for the child has ended"]


def test_child_whose_start_was_abandoned_is_killed_when_it_runs(tmp_path: Path) -> None:
    preloaded = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"
    assert started(tmp_path, preloaded, ABANDONED) == ["stopped waiting", "killed"]
