"""Facts of the benchmarks: what is unknown stays unknown, and nothing is compared that differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.paper.averagings import averaging_of
from benchmarks.paper.downloads import Download, downloads
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.facts import HERE, Fact
from benchmarks.paper.fetch_command import fetch_one, git_blob
from benchmarks.paper.prompts import prompts_of, read_prompts
from benchmarks.paper.protocols import protocol, protocols
from benchmarks.paper.published import Figure, figures, why_not_comparable
from demo.shapes import Scenes
from service.errors import InvalidParameter


def test_unknown_facts_have_no_value_and_known_ones_have_one() -> None:
    assert Fact[int](status="unknown", source="not read").text == "not known"
    assert Fact[int](value=3, status="assumed", source="a choice").text == "3 (assumed)"
    for wrong in ({"value": 3, "status": "unknown"}, {"status": "known"}):
        with pytest.raises(ValidationError, match="unknown values, and only they, are absent"):
            Fact[int].model_validate({**wrong, "source": "x"})


def test_every_benchmark_names_its_network_its_downloads_and_its_subsets() -> None:
    assert {"chronomagic-150", "chronomagic-1649", "msr-vtt", "demo"} < set(protocols())
    assert sum(name.startswith("ucf-101-") for name in protocols()) == 3
    for name, found in protocols().items():
        assert name == "demo" or {file.role for file in downloads(name)} >= {"weights", "real"}
        assert averaging_of(found).unbiased_covariance == (name == "ucf-101-lavie")


def test_published_figures_are_compared_only_at_equal_n_clips_and_protocol() -> None:
    known = {name: Fact[int](value=n, status="known", source="x") for name, n in (("n", 150), ("clips", 3))}
    figure = Figure(benchmark="b", system="s", measure="m", value=200.0, source="x", date="2024", **known)
    assert why_not_comparable(figure, 150, 3, ()) is None
    assert why_not_comparable(figure, 149, 3, ()) == "it has 150 prompts, this run 149"
    assert why_not_comparable(figure, 150, 1, ()) == "it has 3 clips per prompt, this run 1"
    assert why_not_comparable(figure, 150, 3, ["other prompts"]) == "this run has other prompts"
    missing = figure.model_copy(update={"value": None})
    assert why_not_comparable(missing, 150, 3, ()) == "the figure is not known"


def test_none_of_the_papers_own_figures_is_comparable_because_its_clips_per_prompt_are_not_known() -> None:
    papers = [figure for figure in figures("chronomagic-150") if "(the paper)" in figure.system]
    assert sorted(figure.value for figure in papers if figure.value) == [228.6, 275.2]
    assert all(why_not_comparable(figure, 150, 1, ()) for figure in papers)
    assert all(figure.value is None for figure in figures("chronomagic-1649") if "(the paper)" in figure.system)


def test_the_demo_prompts_are_the_scenes_that_their_protocol_names() -> None:
    from torch import Generator

    found = prompts_of(protocol("demo"), Path("/nonexistent"), None)
    assert [prompt.text for prompt in found.prompts] == Scenes.random(200, Generator().manual_seed(41)).captions()
    assert found.sha256 == hashlib.sha256((HERE / "prompts" / "demo.json").read_bytes()).hexdigest()


def test_prompts_of_another_file_are_refused_and_a_missing_one_is_named(tmp_path: Path) -> None:
    chronomagic = protocol("chronomagic-150")
    with pytest.raises(InvalidParameter, match="`ivmix bench fetch chronomagic-150` says where"):
        prompts_of(chronomagic, tmp_path, None)
    (tmp_path / "chronomagic_150.json").write_text('[{"caption_id": "city_12", "caption": "a city"}]')
    with pytest.raises(InvalidParameter, match="has sha256"):
        prompts_of(chronomagic, tmp_path, None)
    (prompt,) = prompts_of(chronomagic, tmp_path, tmp_path / "chronomagic_150.json").prompts  # chosen by name
    assert (prompt.id, prompt.text) == ("city_12", "a city")
    with pytest.raises(InvalidParameter, match="are not known"):
        prompts_of(protocol("msr-vtt"), tmp_path, None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("[]", "at least one"), ('["a", 3]', "entry 1"), ("{", "neither"), ('[{"id": "../x", "prompt": "a"}]', "entry 0")],
)
def test_damaged_prompt_lists_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(InvalidParameter, match=problem):
        read_prompts(file)
    file.write_text(json.dumps([{"id": "a", "prompt": "x"}] * 2))
    with pytest.raises(InvalidParameter, match="'a' twice"):
        read_prompts(file)


def test_a_download_with_another_hash_is_refused(tmp_path: Path) -> None:
    unknown = Fact[str](status="unknown", source="x")
    content = b"features"
    file = Download(
        name="f",
        benchmarks=["demo"],
        role="real",
        stored_as="f.npy",
        by_hand="from your own copy",
        bytes=Fact[int](status="unknown", source="x"),
        sha256=Fact[str](value=hashlib.sha256(content).hexdigest(), status="known", source="x"),
        git_blob=Fact[str](value="01945426eb7ba38e9690d6285ded2676e2453788", status="known", source="x"),
        licence=unknown,
    )
    lines: list[str] = []
    assert not fetch_one(file, tmp_path, lines.append)
    assert "sha256" in lines[0]
    assert "from your own copy" in lines[1]
    (tmp_path / "f.npy").write_bytes(content)
    assert git_blob(tmp_path / "f.npy") == file.git_blob.value
    assert fetch_one(file, tmp_path, lines.append)
    assert "licence: not known" in lines[-1]
    (tmp_path / "f.npy").write_bytes(b"other")
    with pytest.raises(BenchmarkError, match="delete it and get it again"):
        fetch_one(file, tmp_path, lines.append)
