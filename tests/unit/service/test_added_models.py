"""The file of added models: valid TOML whatever is in it, and read by the registry in addition to the models file."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.added_models import ADDED_FILE, AddedModels, toml
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError

PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(PLAIN | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


@settings(max_examples=20)
@given(value=VALUES)
def test_values_are_read_back(value: object) -> None:
    assert tomllib.loads(f"a = {toml(value)}") == {"a": value}


def entry(**changes: Any) -> dict[str, Any]:
    names = ("tokenizer", "text_encoder", "vae", "unet", "motion_adapter", "scheduler")
    limits = {"default": 8, "min": 1, "max": 20}
    fields = ("num_frames", "fps", "num_inference_steps", "guidance_scale")
    raw = {
        "family": "animatediff",
        "created": 1,
        "description": 'C:\\x "ä" \x7f\u2028🎬',
        "licence": "'",
        "sizes": ["8x8"],
    }
    return {**raw, **dict.fromkeys(fields, limits), "components": {name: f"m.1/{name}" for name in names}, **changes}


def write(folder: Path, name: str = "m", **changes: Any) -> AddedModels:
    added = AddedModels(folder)
    added.put(name, entry(**changes), {"m.1": {"folder": '/models/ä "b\\'}})
    added.write()
    return added


def test_models_are_added_to_the_registry(tmp_path: Path) -> None:
    write(tmp_path)
    registry = ModelRegistry.load(weights_dir=tmp_path)
    assert list(registry.known) == [*ModelRegistry.load().known, "m"]
    found = registry.known["m"]
    assert found.description == entry()["description"]
    assert found.all_components["unet"].path == Path('/models/ä "b\\/unet')
    assert registry.get().id == "demo"  # still the default
    assert stat.S_IMODE((tmp_path / ADDED_FILE).stat().st_mode) == 0o600


def test_models_are_dropped_with_their_sources(tmp_path: Path) -> None:
    added = AddedModels(tmp_path)
    for name in ("a", "a.1"):
        added.put(name, entry(components={}), {f"{name}.1": {"folder": "/x"}})
    added.drop("a")
    assert (list(added.models), list(added.sources)) == (["a.1"], ["a.1.1"])
    added.write()
    added.drop("a.1")
    added.write()
    assert not (tmp_path / ADDED_FILE).exists()


def test_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    write(tmp_path, "demo")
    with pytest.raises(
        ConfigurationError, match=r"model demo is in .*models\.toml and in .*added\.toml; `ivmix models r"
    ):
        ModelRegistry.load(weights_dir=tmp_path)
    (tmp_path / ADDED_FILE).write_text("[models")
    for read in (AddedModels, lambda folder: ModelRegistry.load(weights_dir=folder)):
        with pytest.raises(ConfigurationError, match=r"added\.toml"):
            read(tmp_path)
