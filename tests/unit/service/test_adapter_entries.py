"""LoRAs and textual inversions in a models file: located, fetched and verified like components; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.catalog.adapters import without_tokens
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import LockedFile, LockedSource, LockFile, file_sha256
from service.errors import ConfigurationError
from tests.tiny_models import ENTRY

TABLES = """
[[models.m.loras]]
file = "hub/styles/ink.safetensors"
scale = 0.8
on = ["image", "video"]
[[models.m.loras]]
file = "hub/zoom.safetensors"
[[models.m.textual_inversions]]
file = "hub/x.safetensors"
token = "<x>"
"""
FILES = ("styles/ink.safetensors", "zoom.safetensors", "x.safetensors")


def registry(folder: Path, tables: str = TABLES, entry: str = "") -> ModelRegistry:
    file = folder / "models.toml"
    file.write_text(f"[models.m]{ENTRY.format(family='animatediff')}{entry}\n{tables}\n[sources.hub]\nrepo = 'a/b'\n")
    return ModelRegistry.load(file, weights_dir=folder)


def test_files_of_a_hub_are_components_that_fetch_and_verify_know(tmp_path: Path) -> None:
    names = ["loras.0", "loras.1", "textual_inversions.0"]
    entry = registry(tmp_path).known["m"]
    assert entry.missing[-3:] == names
    ink = entry.all_components["loras.0"]
    assert [ink.has_file(file) for file in (*FILES, "styles/other.safetensors")] == [True, False, False, False]
    root = tmp_path / "a--b" / ("c" * 40)
    (root / "styles").mkdir(parents=True)
    for file in FILES:
        (root / file).write_bytes(b"weights")
    sha256 = file_sha256(root / FILES[0])
    locked = {file: LockedFile(sha256=sha256, size=7) for file in FILES}
    LockFile(sources={"a/b@unpinned": LockedSource(revision="c" * 40, files=locked)}).write(tmp_path)
    entry = registry(tmp_path).known["m"]
    assert not set(entry.missing) & set(names)
    for name in names:
        entry.all_components[name].verify()
    (root / FILES[1]).write_bytes(b"changed")
    with pytest.raises(ConfigurationError, match=r"zoom\.safetensors has sha256"):
        entry.all_components["loras.1"].verify()


def test_defaults_and_the_older_form_of_one_lora(tmp_path: Path) -> None:
    entry = registry(tmp_path, entry='lora_scale = 0.5\ncomponents = { lora = "hub/one.safetensors" }').known["m"]
    assert [(lora.file.inside, lora.scale, lora.on) for lora in entry.all_loras] == [
        ("one.safetensors", 0.5, ("image",)),
        ("styles/ink.safetensors", 0.8, ("image", "video")),
        ("zoom.safetensors", 1.0, ("image",)),
    ]
    assert entry.textual_inversions[0].on == ("image", "video")


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ("loras = 3", "loras must be a list of tables: [[models.NAME.loras]]"),
        ('loras = ["hub/x.safetensors"]', "loras must be a list of tables"),
        ("loras = [{ scale = 1.0 }]", "loras.0 has no file; name it as 'source/file.safetensors'"),
        ('loras = [{ file = "nowhere/x.safetensors" }]', "there is no source 'nowhere'"),
        ('loras = [{ file = "hub/folder" }]', "loras.0 must name a .safetensors file"),
        ('loras = [{ file = "hub/x.safetensors", on = [] }]', "on"),
        ('loras = [{ file = "hub/x.safetensors", on = ["vae"] }]', "on"),
        ('loras = [{ file = "hub/x.safetensors", scale = nan }]', "scale"),
        ('loras = [{ file = "hub/x.safetensors", weight = 1.0 }]', "weight"),
        ('textual_inversions = [{ file = "hub/x.safetensors" }]', "token"),
        ('textual_inversions = [{ file = "hub/x.safetensors", token = "a cat" }]', "token"),
        ('textual_inversions = [{ file = "hub/x.pt", token = "<x>" }]', "must name a .safetensors file"),
        (
            'textual_inversions = [{ file = "hub/x.safetensors", token = "<x>" }, '
            '{ file = "hub/y.safetensors", token = "<X>" }]',
            "has the token <x> twice",
        ),
    ],
)
def test_entry_that_cannot_be_is_refused_and_named(tmp_path: Path, tables: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"models\.toml: models\.m") as raised:
        registry(tmp_path, "", tables)
    assert complaint in raised.value.message


def test_tokens_are_counted_whatever_their_case_and_their_neighbours(tmp_path: Path) -> None:
    inversions = registry(tmp_path).known["m"].textual_inversions
    assert without_tokens("a <X>circle, <x>_1 and <y>", inversions) == ("a  circle,   and <y>", 2)
    assert without_tokens("a circle", ()) == ("a circle", 0)
