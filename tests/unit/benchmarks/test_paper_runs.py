"""Arms, shards and folders of a benchmark's run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.paper.arms import Arm, Fields, ablation, choose, given_arms
from benchmarks.paper.clips import lossless_bytes, read_frames
from benchmarks.paper.generate import Shard, Task, missing_batches, write_clip
from benchmarks.paper.makers import Made, Order
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.run_folder import ClipKey, Run, RunFolder, seed_of
from benchmarks.paper.svg_plots import Bar, Point, bars, scatter
from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.request import VideoRequest

ENTRY = ModelRegistry.load().entry("demo")
PROMPTS = [Prompt(f"{i:04}", f"prompt {i}") for i in range(7)]
ARM = Arm(name="ddim", fields={"sampler": {"name": "ddim"}}, calls={"image": 0, "video": 16})


def count(fields: Fields) -> Mapping[str, int]:
    prompt = ENTRY.default_generation.prompt
    return ENTRY.resolve(VideoRequest.model_validate({**fields, "prompt": prompt})).network_calls


def test_matched_arms_have_the_steps_whose_calls_are_closest() -> None:
    names = ["freeinit-matched", "zigzag-matched", "evs-matched", "iv-mixed", "ddim"]
    arms = {arm.name: arm for arm in choose(names, {}, {"num_inference_steps": 16}, count)}
    assert list(arms) == [*names, "ddim-matched"]  # always there
    assert {name: arm.total_calls for name, arm in arms.items()} == {
        "freeinit-matched": 45,  # 14 steps: 42
        "zigzag-matched": 43,  # 16 steps: 46
        "evs-matched": 44,
        "iv-mixed": 44,
        "ddim": 16,
        "ddim-matched": 44,
    }


def test_unknown_repeated_and_unmatchable_arms_are_refused() -> None:
    for names, problem in ((["ddimm"], "no arm 'ddimm'"), (["ddim", "ddim"], "more than once"), (["ddim"], "has none")):
        with pytest.raises(InvalidParameter, match=problem):
            choose(names, {}, {}, count)
    with pytest.raises(InvalidParameter, match="NAME=JSON"):
        given_arms(["x"])
    with pytest.raises(InvalidParameter, match="without prompt and seed"):
        given_arms(['x={"seed": 3}'])


@pytest.mark.parametrize(
    ("name", "number"), [("intervals", 7), ("combinations", 6), ("renoise", 5), ("guidance", 4)], ids=str
)
def test_every_arm_of_an_ablation_can_be_run(name: str, number: int) -> None:
    extra = ablation(name, ENTRY.sampler.model_dump())
    arms = choose(["iv-mixed"], extra, {"num_inference_steps": 16}, count)
    assert len(arms) == 2 + number
    assert len({arm.digest for arm in arms}) == len(arms)
    with pytest.raises(InvalidParameter, match="there are intervals"):
        ablation("figure 4", {})


def test_seeds_depend_on_benchmark_prompt_and_repeat_only() -> None:
    seeds = {seed_of(benchmark, prompt, repeat) for benchmark in "ab" for prompt in "xy" for repeat in range(3)}
    assert len(seeds) == 12
    assert seed_of("demo", "0003", 0) == 148201960272911  # of a run of 2026-11-27: it must stay


def test_shards_are_disjoint_and_together_the_whole_run() -> None:
    parts = [list(Task("demo", PROMPTS, [ARM], 3, 2, Shard(i, 4)).keys()) for i in range(4)]
    every = list(Task("demo", PROMPTS, [ARM], 3, 2).keys())
    assert sorted(key.stem for part in parts for key in part) == sorted(key.stem for key in every)
    assert len(every) == 21
    assert [key.repeat for key in every[:7]] == [0] * 7  # the first repeat of all prompts comes first
    for text in ("4/4", "1", "-1/2", "a/b"):
        with pytest.raises(InvalidParameter, match="i from 0"):
            Shard.parse(text)


def test_a_clip_without_manifest_is_made_again_with_its_whole_batch(tmp_path: Path) -> None:
    folder, task = RunFolder(tmp_path), Task("demo", PROMPTS, [ARM], 1, 3)
    keys = list(task.keys())
    for key in keys:
        prompt = next(prompt for prompt in PROMPTS if prompt.id == key.prompt_id)
        order = Order(key, ARM, prompt.text, seed_of("demo", key.prompt_id, 0))
        write_clip(folder, "demo", order, Made({"mp4": b"clip"}, 1.0, "CPU"), "test")
    assert missing_batches(folder, task) == []
    lost = ClipKey("ddim", "0004", 0)
    leftover = folder.clip(lost, "mp4").with_name(".0004.0.mp4.99.part")
    leftover.write_bytes(b"cl")
    folder.clip(lost, "json").unlink()
    (batch,) = missing_batches(folder, task)
    assert [order.key.prompt_id for order in batch.orders] == ["0003", "0004", "0005"]
    assert batch.missing == {lost}
    folder.write(folder.clip(lost, "mp4"), b"clip")
    assert not leftover.exists()


def test_a_folder_refuses_another_run_and_another_arm_of_a_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run = Run(
        benchmark="demo",
        protocol="0",
        model="demo",
        weights="1",
        prompts="2",
        prompts_file="3",
        n=7,
        request={"size": "384x384"},
        cut_prompts=False,
        batch=1,
    )
    folder.open_run(run)
    folder.open_run(run)
    assert folder.run == run
    with pytest.raises(ConfigurationError, match="weights is '1' there and '9' here; give another --out"):
        folder.open_run(run.model_copy(update={"weights": "9"}))
    folder.open_arm(ARM)
    with pytest.raises(ConfigurationError, match="it has another arm 'ddim'"):
        folder.open_arm(ARM.model_copy(update={"fields": {"sampler": {"name": "evs"}}}))
    with folder.shard_lock(0, 2), folder.shard_lock(1, 2), pytest.raises(ConfigurationError, match="shard 1/2"):
        folder.shard_lock(1, 2).__enter__()


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder, key = RunFolder(tmp_path), ClipKey("ddim", "0000", 0)
    write_clip(folder, "demo", Order(key, ARM, "a", 1), Made({"mp4": b"clip"}, 1.0, "CPU"), "test")
    manifest = folder.manifest(key)
    assert manifest is not None
    assert folder.check_clip(key, manifest, "mp4").read_bytes() == b"clip"
    folder.clip(key, "mp4").write_bytes(b"clop")
    with pytest.raises(ConfigurationError, match="delete both"):
        folder.check_clip(key, manifest, "mp4")


def test_the_lossless_copy_has_every_pixel(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 34, 3), dtype=np.uint8)
    file = tmp_path / "a.mkv"
    file.write_bytes(lossless_bytes(frames, 8))
    assert np.array_equal(read_frames(file), frames)
    assert lossless_bytes(frames, 8) == file.read_bytes()


def test_plots_are_xml_and_drawn_to_scale() -> None:
    plot = ElementTree.fromstring(bars("A & B", [Bar("a<b", 2.0, 0.5), Bar("b", 1.0, None)], ("floor", 0.5)))
    widths = [float(part.attrib["width"]) for part in plot if part.tag == "rect"]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    points = ElementTree.fromstring(scatter("s", [Point("a", 1, 1), Point("b", 1, 2), Point("c", 3, 2)], "x", "y"))
    places = [(float(p.attrib["cx"]), float(p.attrib["cy"])) for p in points if p.tag == "circle"]
    assert places[0][0] == places[1][0] < places[2][0]
    assert places[0][1] > places[1][1] == places[2][1]  # up is more
