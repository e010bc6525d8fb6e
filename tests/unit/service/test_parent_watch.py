import os
import subprocess
import sys
import threading
import time

from service.process.parent_watch import SUPERVISOR, watch_parent


def test_nothing_happens_while_the_parent_lives() -> None:
    gone = threading.Event()
    watch_parent(os.getppid(), gone.set)
    assert not gone.wait(0.8)


def test_parent_that_had_ended_before_we_looked_is_noticed() -> None:
    """A child that asked for its parent's id only after a slow import never noticed, and kept the GPU forever."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = threading.Event()
    watch_parent(ended.pid, gone.set)
    assert gone.wait(5)


def test_supervised_process_ends_with_its_supervisor_and_a_free_one_does_not() -> None:
    code = "from service.process import parent_watch; parent_watch.end_with_supervisor(); __import__('time').sleep(60)"
    # The supervisor named here is not the parent, which is what a child sees when its own has ended.
    supervised = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, SUPERVISOR: "1"})
    free = subprocess.Popen([sys.executable, "-c", code], env={k: v for k, v in os.environ.items() if k != SUPERVISOR})
    try:
        assert supervised.wait(20) == -15
        time.sleep(1)
        assert free.poll() is None
    finally:
        free.kill()
        free.wait()
