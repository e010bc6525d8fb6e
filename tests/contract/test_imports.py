"""What a process loads, seen from a fresh interpreter; `lint-imports` checks the same on the source."""

import os
import re
import subprocess
import sys

import pytest

from tests.containers import ROOT

# torch has no public names for them.
PRIVATE = {"torch._dynamo.config", "torch._inductor.runtime.cache_dir_utils"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_sampler_loads_torch_and_nothing_else_of_ours() -> None:
    loaded = loaded_by("import sampler")
    assert "torch" in loaded
    assert not loaded & {"service", "worker", "demo", "diffusers", "transformers", "redis", "rq", "pydantic", "fastapi"}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "module",
    ["service.api.app", "service.cli.main", "service.process.supervisor", "service.webhook_dispatcher.dispatcher"],
)
def test_service_loads_neither_torch_nor_worker_nor_sampler(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "service" in loaded
    assert not loaded & {"torch", "worker", "sampler", "demo", "diffusers", "transformers", "av", "numpy"}


def test_worker_parent_does_not_load_torch() -> None:
    loaded = loaded_by("import worker.__main__, worker.tasks")
    assert {"worker", "rq"} <= loaded
    assert not loaded & {"torch", "sampler", "diffusers", "transformers", "fastapi", "uvicorn"}


PRELOAD = """
import os
import torch
calls = []
for name in ("is_available", "device_count", "current_device", "get_device_capability", "init", "_lazy_init"):
    setattr(torch.cuda, name, lambda *args, name=name, **kwargs: calls.append(name))
import worker.child.preload
import sys
assert "worker.child.engine" in sys.modules
assert not calls, calls
assert not torch.cuda.is_initialized()
assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
"""


def test_what_children_are_forked_from_has_started_neither_cuda_nor_a_thread() -> None:
    """A mere `torch.cuda.is_available()` before the fork makes CUDA unusable after it."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # torch comes before the preload here
    subprocess.run([sys.executable, "-c", PRELOAD], env=environment, check=True)


def test_no_library_is_used_by_a_private_name() -> None:
    """It may change without notice."""
    packages = ("service", "worker", "sampler", "demo")
    sources = "\n".join(file.read_text() for package in packages for file in sorted((ROOT / package).rglob("*.py")))
    imported = re.findall(r"^ *(?:from|import) ([\w.]+)(?: import ([\w, ()]+))?", sources, re.MULTILINE)
    names = {module if not name else f"{module} {name}" for module, name in imported}
    assert "starlette.types ASGIApp, Message, Receive, Scope, Send" in names
    private = {name.partition(" ")[0] for name in names if re.search(r"[ .]_(?!_)", name)}
    assert private <= PRIVATE
