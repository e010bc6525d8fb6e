"""The evaluation commands run from end to end on one arm; their figures are read by people, not asserted."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import quality


def run(*command: str) -> str:
    """Run a command in a new process and return what it prints."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Like `run`, but in this process, which has torch and diffusers loaded already."""

    def run_main(module: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(module).main()
        return capsys.readouterr().out

    return run_main


@pytest.mark.slow
def test_approximate_sampling_is_compared_with_exact_clips(tmp_path: Path, run_here: Callable[..., str]) -> None:
    command = ("benchmarks.approximate", "--prompts", "2", "--arms", "fused", "--folder", str(tmp_path))
    exact, fused = run_here(*command).splitlines()[-2:]
    cells = [cell.strip() for cell in exact.strip("|").split("|")]
    assert (cells[0], cells[2], cells[4]) == ("IV-mixed", "1.000", "inf")
    assert fused.startswith("| fused (experimental) | 24 | 0.7"), "calls and share of the FLOP"


@pytest.mark.slow
def test_quality_benchmark_prints_a_table_and_resumes(
    tmp_path: Path, run_here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo_models", "Judges"):  # both runs share them
        monkeypatch.setattr(quality, name, functools.cache(getattr(quality, name)))
    result, sheet = tmp_path / "quality.json", tmp_path / "quality.png"
    small = ("benchmarks.quality", "--prompts", "2", "--steps", "2", "--processes", "1", "--arms", "fused")
    files = ("--json", str(result), "--sheet", str(sheet))
    run_here(*small, "--seeds", "1", *files)
    first = json.loads(result.read_text())["arms"]["fused (experimental)"]
    printed = run_here(*small, "--seeds", "2", *files)
    both = json.loads(result.read_text())["arms"]["fused (experimental)"]
    assert list(both) == ["0", "1"]
    assert both["0"] == first["0"]  # not drawn again
    assert both["1"]["frame_fd"] != both["0"]["frame_fd"]  # other noise
    assert "seed 0:" not in printed
    header, row = printed.splitlines()[-2:]
    assert header.split()[:2] == ["arm", "I"]
    assert "±" in row
    assert sheet.stat().st_size > 1000


@pytest.mark.slow
def test_api_load_prints_latencies_of_creating_and_polls_and_of_a_bare_endpoint(tmp_path: Path) -> None:
    result = tmp_path / "load.json"
    quick = ("--rates", "5", "10", "--seconds", "1", "--rounds", "1", "--connections", "2", "--json", str(result))
    printed = run("benchmarks.api_load", *quick)
    assert [line.split()[:3] for line in printed.splitlines() if "p50" in line] == [["creating", "p50", "ms"]]
    assert [line.split("  ")[0] for line in printed.splitlines() if line.endswith(("5/5", "10/10"))] == [
        "5 per second",
        "10 per second",
    ]
    found = json.loads(result.read_text())
    assert list(found["polls"]) == ["bare, async def", "bare, def", "status poll", "polls of many"]
    assert all(arm["per_second"] > 0 and arm["cpu_ms"] > 0 for arm in found["polls"].values())
    assert all(0 < rate["p50"] <= rate["p95"] <= rate["p99"] for rate in found["create"].values())


@pytest.mark.slow
def test_page_load_compares_polls_with_and_without_pages(tmp_path: Path) -> None:
    result = tmp_path / "pages.json"
    small = ("--queued", "30", "--pages", "2", "--polls", "20", "--seconds", "2", "--rounds", "1")
    printed = run("benchmarks.page_load", *small, "--json", str(result))
    assert printed.splitlines()[-1].startswith("ratio")
    found = json.loads(result.read_text())
    assert all(0 < one["p50"] <= one["p99"] for rounds in found.values() for one in rounds)


@pytest.mark.slow
def test_evaluation_scores_a_variant(tmp_path: Path, run_here: Callable[..., str]) -> None:
    result = tmp_path / "evaluation.json"
    files = ("--json", str(result), "--sheet", str(tmp_path / "sheet.png"))
    few = ("--prompts", "3", "--processes", "1", "--only-variants", "--variant", '{"steps": 2, "interval": [0, 1]}')
    run_here("demo.evaluate", *few, *files)
    (row,) = json.loads(result.read_text())["rows"].values()
    assert row["calls"] == 6  # two ordinary steps and one zig-zag of four moves
    assert 0 <= row["shape"] <= 1


@pytest.mark.slow
def test_scale_simulation_counts_what_queue_and_workers_cost(tmp_path: Path) -> None:
    result = tmp_path / "scale.json"
    small = ("--workers", "1", "2", "--jobs", "2", "--steps", "5", "--step-s", "0.1", "--idle-s", "1")
    printed = run("benchmarks.scale_sim", *small, "--json", str(result))
    found = json.loads(result.read_text())
    one, two = found["rounds"]
    assert (one["jobs"], two["jobs"]) == (2, 4)
    assert 0 < one["of_ideal"] <= 1
    assert one["commands_per_job"] > 5  # at least its progress
    assert one["log_bytes_per_job"] > 1000  # its record
    assert [entry["together"] for entry in found["progress"]] == [1, 10, 100]
    assert len(printed.splitlines()) == 10


@pytest.mark.slow  # a timed test
def test_the_loop_costs_at_most_half_of_the_released_one(tmp_path: Path) -> None:
    """A ratio of two fastest steps in one process, so that a busy machine matters little."""
    out = tmp_path / "overhead.json"
    run("benchmarks.overhead", "--rounds", "20", "--json", str(out))
    found = json.loads(out.read_text())
    assert found["us_per_outer_step"] > 0
    assert found["ratio"] == found["us_per_outer_step"] / found["reference_us_per_outer_step"] <= 0.5


@pytest.mark.slow
def test_the_gpu_benchmark_of_wan_goes_its_whole_way_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "wan.json"
    assert "the figures mean nothing" in run("benchmarks.gpu_loop", "--smoke", "--family", "wan", "--json", str(out))
    found = json.loads(out.read_text())
    assert list(found["arms"]) == ["A", "A'", "B", "B'"]
    assert all(arm["step_s"] > 0 for arm in found["arms"].values())
    work = found["flops"]
    assert work["clip"] == 2 * found["steps"] * work["call"] + work["decode"]


@pytest.mark.slow
@pytest.mark.parametrize("arms", [("A", "B"), ("A", "A'", "B", "B'")], ids=" ".join)
def test_the_gpu_benchmark_goes_its_whole_way_on_a_cpu(tmp_path: Path, arms: tuple[str, ...]) -> None:
    """With tiny networks; its figures mean nothing, but none may be missing."""
    out = tmp_path / "gpu.json"
    printed = run("benchmarks.gpu_loop", "--smoke", "--arms", *arms, "--json", str(out))
    assert "the figures mean nothing" in printed
    found = json.loads(out.read_text())
    assert found["gate"] == "passed"
    assert list(found["arms"]) == list(arms)
    assert all(value > 0 for value in found["roofs"].values())
    assert {name for name in found["roofs"] if name.startswith("matrix")} == {
        "matrix_bfloat16_tflops",
        "matrix_float32_tflops",
    }
    assert {f"{released}/{ours}" for released in arms if "A" in released for ours in arms if "B" in ours} <= set(
        found["ratios"]
    )
    assert all(ratio > 0 for each in found["ratios"].values() for ratio in each.values())
    for name, arm in found["arms"].items():
        assert max(arm["relative_error"].values()) <= 1e-5
        assert arm["step_s"]["count"] == 2  # A B B A
        assert 0 < arm["step_s"]["fastest"] <= arm["step_s"]["median"] < arm["first_step_s"] + arm["clip_s"]
        assert arm["tflops"] == pytest.approx(found["tflop_per_clip"] / arm["clip_s"])
        assert sum(arm["kernel_ms"].values()) > 0
        assert arm["kernels_per_call"] > 100
        assert arm["host_waits_per_step"] == (28 if name.startswith("A") else 0)
    if "B'" in arms:
        assert found["arms"]["A'"]["compile_s"] > found["arms"]["A"]["compile_s"]
        assert found["arms"]["B'"]["fell_back_to_eager"] is False


@pytest.mark.slow
def test_throughput_prints_clips_per_hour_gap_and_phases(tmp_path: Path) -> None:
    result = tmp_path / "throughput.json"
    printed = run(
        "benchmarks.throughput", "--jobs", "3", "--rounds", "1", "--steps", "2", "--json", str(result)
    ).splitlines()
    assert [line.split(",")[0] for line in printed[2:4]] == ["bare engine", "service"]
    assert "gap between queued jobs" in printed[5]
    (served,) = json.loads(result.read_text())["served"]
    assert (served["jobs"], served["gaps"]) == (3, 2)
    assert served["gaps_s"] > 0
    assert set(served["phases_s"]) == {"encoding", "sampling", "decoding", "uploading"}
