from __future__ import annotations

import pkgutil
import subprocess
import sys

import service

FORBIDDEN = ("torch", "diffusers", "transformers", "worker", "sampler")

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(service.__path__, "service.")
    if not module.name.endswith("__main__")
)


def test_no_module_of_the_service_loads_the_gpu_side() -> None:
    program = f"""
import importlib, sys
for name in {MODULES}: importlib.import_module(name)
print(*[name for name in {FORBIDDEN} if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_importing_the_service_starts_nothing() -> None:
    """No connection, no thread, no output: importing is not doing."""
    program = f"""
import importlib, socket, threading
def refuse(*args, **kwargs): raise AssertionError("a connection at import")
socket.socket.connect = refuse
for name in {MODULES}: importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
