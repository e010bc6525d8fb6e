"""Broken and odd model folders: `verify` and loading refuse the same ones with the same sentence, or accept them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from tests.broken_cases import CASES
from tests.broken_models import broken_model, good_model, mutate
from tests.tiny_models import write_entry
from worker.models import load
from worker.verify import verify

ROUNDS, SEED = int(os.environ.get("BROKEN_ROUNDS", "25")), int(os.environ.get("BROKEN_SEED", "0"))
LONGEST = 700  # characters of a sentence


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    entry = good_model(folder)
    assert len(list(verify(entry))) == 6
    load(entry, "cpu")
    return folder


def refusal_of_both(entry: ModelEntry) -> str | None:
    """What `verify` and loading say; None if both accept. Any other exception than a ConfigurationError gets out."""
    said: list[str | None] = []
    for check in (lambda: list(verify(entry)), lambda: load(entry, "cpu")):
        try:
            check()
            said.append(None)
        except ConfigurationError as e:
            said.append(e.message)
    assert said[0] == said[1], "verify and load disagree"
    return said[0]


@pytest.mark.parametrize("name", CASES)
def test_broken_folder_is_refused_by_name_and_with_the_way_out(good: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    said = refusal_of_both(broken_model(good, tmp_path / "model", case))
    assert (said is None) == (not case.says), said
    if said is not None:
        assert [part for part in case.says if part not in said] == [], said
        assert "\n" not in said
        assert len(said) <= LONGEST


@pytest.mark.parametrize("number", range(ROUNDS))
def test_randomly_damaged_folder_is_loaded_or_refused_by_name(good: Path, tmp_path: Path, number: int) -> None:
    rng, done = random.Random(SEED * 100_003 + number), ""
    folder = tmp_path / "model"
    import shutil

    shutil.copytree(good, folder)
    done = mutate(folder, rng)
    said = refusal_of_both(write_entry(folder, "animatediff"))
    assert said is None or str(folder) in said or "model tiny" in said, f"{done}: {said}"
