"""The version is written in several places, and is the same in all of them."""

from __future__ import annotations

import re
import tomllib

import pytest

import service
from tests.containers import ROOT


def test_the_project_has_the_version_of_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == service.__version__


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CHANGELOG.md", r"^## \[(.+?)\]"),
        ("deploy/overlays/production/kustomization.yaml", r"newTag: (.+)}$"),
        ("docs/operations.md", r"^release=(\S+)"),
    ],
)
def test_files_name_this_version_first(file: str, pattern: str) -> None:
    assert re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)[0] == service.__version__
