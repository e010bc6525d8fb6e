"""`ivmix bench fetch` against a server that speaks a hub's API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.paper import fetch_command
from benchmarks.paper.downloads import downloads
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.facts import Fact
from service.errors import ConfigurationError
from tests.adding import use_hub
from tests.fake_hub import Hub, serve_hub

WEIGHTS = b"weights" * 100


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With UMT's file, whose hash the data files name as that of these bytes."""
    with serve_hub() as served:
        use_hub(served, monkeypatch)
        served.commit("BestWishYsh/ChronoMagic-Bench", {"UMT/UMT-msrvtt-7k.pth": WEIGHTS, "README.md": b"#"})
        served.commit("google-bert/bert-large-uncased", {"vocab.txt": b"[PAD]\n"})
        known = Fact[str](value=hashlib.sha256(WEIGHTS).hexdigest(), status="known", source="x")
        found = [
            file.model_copy(update={"sha256": known}) if file.network == "umt" else file
            for file in downloads("chronomagic-150")
        ]
        monkeypatch.setattr(fetch_command, "downloads", lambda _name: found)
        yield served


def test_what_a_hub_has_is_fetched_and_the_rest_is_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BenchmarkError, match="3 of 5 files must be got by hand"):
        fetch_command.fetch("chronomagic-150", tmp_path)
    assert (tmp_path / "UMT-msrvtt-7k.pth").read_bytes() == WEIGHTS
    assert (tmp_path / "bert-large-uncased" / "vocab.txt").read_bytes() == b"[PAD]\n"
    printed = capsys.readouterr().out
    assert "chronomagic_150.json: missing" in printed
    assert "github.com/PKU-YuanGroup/ChronoMagic-Bench at e6b75ff" in printed
    asked = len(hub.downloads())
    with pytest.raises(BenchmarkError, match="3 of 5"):
        fetch_command.fetch("chronomagic-150", tmp_path)
    assert len(hub.downloads()) == asked == 2  # what is there is not fetched again


def test_a_file_with_another_hash_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.commit("BestWishYsh/ChronoMagic-Bench", {"UMT/UMT-msrvtt-7k.pth": b"other"})
    with pytest.raises(ConfigurationError, match="sha256"):
        fetch_command.fetch("chronomagic-150", tmp_path)
    assert not (tmp_path / "UMT-msrvtt-7k.pth").exists()
    hub.commit("BestWishYsh/ChronoMagic-Bench", {"README.md": b"#"})
    with pytest.raises(BenchmarkError, match=r"has no UMT/UMT-msrvtt-7k\.pth"):
        fetch_command.fetch("chronomagic-150", tmp_path)


def test_a_dry_run_asks_no_hub(hub: Hub, tmp_path: Path) -> None:
    fetch_command.fetch("chronomagic-150", tmp_path, dry_run=True)
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []
