"""docs/architecture.md names packages and modules that exist, and all packages that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.api.app import create_app
from service.settings import Settings
from service.wiring import open_services
from tests.containers import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
# Folders that a path may start from, besides the root.
BASES = (
    "",
    "service",
    "service/api",
    "service/jobs",
    "service/process",
    "service/maintenance",
    "worker",
    "worker/child",
    "worker/parent",
)


def exists(path: str) -> bool:
    return any((ROOT / base / path).exists() for base in BASES)


def paths(text: str) -> set[str]:
    return set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:\.py|\.lua|/))`", text))


def test_every_module_and_package_exists() -> None:
    assert len(paths(TEXT)) > 30
    assert sorted(path for path in paths(TEXT) if not exists(path)) == []


def test_a_missing_module_is_seen() -> None:
    assert [path for path in sorted(paths("`service/conections.py`, `server.py`")) if not exists(path)] == [
        "service/conections.py"
    ]


@pytest.mark.parametrize("parent", ["service", "worker"])
def test_every_package_is_in_the_table(parent: str) -> None:
    packages = {f"{parent}/{init.parent.name}/" for init in (ROOT / parent).glob("*/__init__.py")}
    assert packages - paths(TEXT) == set()


def test_the_modules_that_a_request_passes_are_listed_in_their_order(tmp_path: Path) -> None:
    services = open_services(Settings(redis_url="redis://127.0.0.1:1", data_dir=tmp_path))  # does not connect
    classes = [str(getattr(added.cls, "__module__", "")) for added in create_app(services).user_middleware]
    passed = list(dict.fromkeys(f"{name.rpartition('.')[2]}.py" for name in classes if name.startswith("service.")))
    rows = re.findall(r"`(\w+\.py)`", TEXT.partition("What a request passes")[2])
    assert len(passed) >= 5
    assert [module for module in rows if module in passed] == passed
