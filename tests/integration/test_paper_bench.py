"""The whole command on the demo world: killed, resumed and sharded runs have the same table, to the last digit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx2
import pytest

from tests.forked_commands import ForkedCommands, forked_commands

SMALL = ("demo", "--limit", "4", "--clips", "1", "--batch", "2", "--arms", "iv-mixed", "--set", "num_inference_steps=1")
TABLE = ("--clips", "1", "--permutations", "19")
CLIPS = 8  # of SMALL: four prompts in two arms


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    with forked_commands(tmp_path_factory.mktemp("commands")) as found:
        yield found


@pytest.fixture(scope="module")
def killed(commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed while it made clips, killed again while it computed features, and then finished."""
    out = tmp_path_factory.mktemp("killed") / "run"
    command = (*SMALL, "--out", str(out))
    commands.run_and_kill(*command, when=lambda: bool(manifests(out)))
    assert 0 < len(manifests(out)) < CLIPS
    commands.run_and_kill(*command, when=lambda: bool(features(out)))
    assert len(manifests(out)) == CLIPS
    assert len(features(out)) < CLIPS
    status, printed = commands.run(*command)
    assert (status, len(features(out))) == (0, CLIPS), printed
    assert "0 clips to make" in printed
    assert list(out.rglob("*.part")) == []
    return out


@pytest.fixture(scope="module")
def sharded(commands: ForkedCommands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two shards, the last one first; without features, which the table computes."""
    out = tmp_path_factory.mktemp("sharded") / "run"
    for shard, made in (("1/2", 4), ("0/2", 8)):
        status, printed = commands.run(*SMALL, "--out", str(out), "--no-features", "--shard", shard)
        assert (status, len(manifests(out))) == (0, made), printed
    return out


def manifests(out: Path) -> list[Path]:
    return list((out / "clips").glob("*/[!.]*.json"))


def features(out: Path) -> list[Path]:
    return list((out / "features").rglob("[!.]*.npz"))


def table_of(commands: ForkedCommands, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """As text, and as JSON without what every run has otherwise."""
    status, printed = commands.run("table", str(out), *TABLE, *options)
    assert status == 0, printed
    found = json.loads((out / "table.json").read_text())
    assert found.pop("made")["seconds_per_clip"].keys() == {"iv-mixed", "ddim-matched"}
    return (out / "table.txt").read_text(), found


def test_killed_and_sharded_runs_have_the_same_table(commands: ForkedCommands, killed: Path, sharded: Path) -> None:
    text, found = table_of(commands, killed)
    assert table_of(commands, sharded, "--no-html") == (text, found)
    assert [arm["name"] for arm in found["arms"]] == ["iv-mixed", "ddim-matched"]
    assert found["arms"][0]["distances"]["video"]["fd"] != found["arms"][1]["distances"]["video"]["fd"]
    assert found["floor"]["video"]["n"] == 4
    assert "Deviates from the protocol: 4 prompts instead of 200." in text
    page = (killed / "table.html").read_text()
    assert page.count("<svg") == 4  # two distances, the score, and one against the other
    for plot in page.split("<svg")[1:]:
        ElementTree.fromstring(f"<svg{plot.partition('</svg>')[0]}</svg>")
    assert page.count('src="data:image/webp') == 2 * 2 * 2  # the best and worst two prompts, in two arms


def test_noise_is_the_same_in_every_arm(killed: Path) -> None:
    found = [json.loads(file.read_text()) for file in manifests(killed)]
    seeds = {
        arm: {each["prompt_id"]: each["seed"] for each in found if each["arm"] == arm}
        for arm in ("iv-mixed", "ddim-matched")
    }
    assert seeds["iv-mixed"] == seeds["ddim-matched"]
    assert len(set(seeds["iv-mixed"].values())) == 4


def test_a_missing_clip_is_an_error_and_never_a_smaller_n(commands: ForkedCommands, sharded: Path) -> None:
    """Also a clip whose file is another one than was made."""
    manifest = sharded / "clips" / "iv-mixed" / "0002.0.json"
    content = manifest.read_bytes()
    manifest.unlink()
    status, printed = commands.run("table", str(sharded), *TABLE)
    assert (status, "1 clips are missing (iv-mixed 0002 repeat 0)" in printed) == (1, True), printed
    manifest.write_bytes(content.replace(b'"seed": ', b'"seed": 1'))
    status, printed = commands.run("table", str(sharded), *TABLE)
    assert (status, "protocol mismatch" in printed, "has seed 1" in printed) == (1, True, True), printed
    manifest.write_bytes(content)
    status, printed = commands.run("table", str(sharded), "--permutations", "19")  # three clips by default
    assert (status, "16 clips are missing" in printed) == (1, True), printed


def test_a_table_is_of_one_protocol_only(commands: ForkedCommands, sharded: Path) -> None:
    run = sharded / "run.json"
    content = run.read_text()
    run.write_text(content.replace(json.loads(content)["protocol"], "0" * 16))
    status, printed = commands.run("table", str(sharded), *TABLE)
    run.write_text(content)
    assert (status, "protocol mismatch" in printed) == (1, True), printed


@pytest.mark.slow
def test_a_service_makes_the_same_clips_and_no_job_twice(
    commands: ForkedCommands, demo_server: str, tmp_path: Path
) -> None:
    """A clip whose manifest was lost, as after a kill between creation and download, is the job that it had."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    two = ("demo", "--limit", "1", "--clips", "1", "--arms", "iv-mixed", "--set", "num_inference_steps=2")
    for out, via in ((local, "local"), (remote, demo_server)):
        status, printed = commands.run(*two, "--no-features", "--out", str(out), "--via", via)
        assert (status, len(manifests(out))) == (0, 2), printed
    assert clips(remote) == clips(local)
    for manifest in manifests(remote):
        manifest.unlink()
    assert commands.run(*two, "--no-features", "--out", str(remote), "--via", demo_server)[0] == 0
    assert clips(remote) == clips(local)
    with httpx2.Client(base_url=demo_server) as http:
        videos = http.get("/v1/videos", params={"metadata[bench]": "demo", "limit": 100}).json()["data"]
    assert sorted(video["metadata"]["arm"] for video in videos) == ["ddim-matched", "iv-mixed"]


def clips(out: Path) -> dict[str, str]:
    return {f"{file.parent.name}/{file.name}": json.loads(file.read_text())["files"]["mp4"] for file in manifests(out)}


@pytest.mark.slow
def test_kills_at_random_moments_change_no_digit(commands: ForkedCommands, killed: Path, tmp_path: Path) -> None:
    text, found = table_of(commands, killed)
    for seed in range(6):
        out, chance = tmp_path / str(seed), random.Random(seed)
        for _ in range(4):
            end = time.monotonic() + chance.uniform(0.5, 8)
            shard = chance.choice(("0/2", "1/2"))
            commands.run_and_kill(
                *SMALL, "--out", str(out), "--shard", shard, when=lambda end=end: time.monotonic() > end, may_end=True
            )
        for shard in ("1/2", "0/2"):
            assert commands.run(*SMALL, "--out", str(out), "--shard", shard)[0] == 0
        assert table_of(commands, out, "--no-html") == (text, found)
