"""What tests start ends with them, however suddenly: a server that stays takes memory and ports from later runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import is_running, session_of, wait_for

TESTS = """
import pathlib, sys, time
from tests.processes import ivmix_up
from tests.valkey import Valkey

with Valkey(pathlib.Path("queue")), ivmix_up(pathlib.Path("data"), "--workers", "0"):
    print("up", flush=True)
    time.sleep(3600)
"""


def test_service_and_queue_end_with_tests_that_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TESTS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == "up\n"
        family = session_of(tests.pid)
        tests.kill()
    assert len(family) >= 6, "two servers, their guard, ivmix up and its three processes"
    wait_for(lambda: not any(map(is_running, family)), hint="for what the tests had started")
