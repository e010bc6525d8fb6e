"""VBench (arXiv:2311.17982) of a folder of clips, by its own program in a separate environment.

VBench 0.1.5 pins numpy below 2 and transformers 4.33, so it cannot share ours, and it needs a CUDA GPU:

    python3.10 -m venv vbench-env && vbench-env/bin/pip install torch torchvision vbench

Its module `vbench.launch.evaluate` is run directly: its command `vbench evaluate` passes paths through a shell and ends
with 0 when the evaluation fails.

Written from the command line and the result files of github.com/Vchitect/VBench, commit 45e79ec, in its mode
`custom_input`. It has not been run with VBench itself.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.errors import BenchmarkError

DIMENSIONS = (
    "dynamic_degree",  # always: a static clip is perfectly consistent, smooth and free of flicker
    "imaging_quality",
    "aesthetic_quality",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
)
CLIPS = {".mp4", ".gif"}  # VBench ignores all other files
LOG_TAIL = 15  # lines shown when it fails


@dataclass(frozen=True)
class Dimension:
    """`mean` as VBench prints it. Values per clip are its own too: of imaging quality 0 to 100, where the mean is 0 to
    1; of subject consistency the mean is over frames."""

    mean: float
    clips: dict[str, float]  # file name to value


def measure(
    python: Path, videos: Path, dimensions: Iterable[str] = DIMENSIONS, *, timeout_s: float = 12 * 3600
) -> dict[str, Dimension]:
    """Every dimension of the clips in a folder. Dynamic degree is always among them.

    Args:
        python: `bin/python` of VBench's environment.

    Raises:
        BenchmarkError: a name is unknown, there are no clips, VBench fails, or a clip has no result.
    """
    asked = list(dict.fromkeys(["dynamic_degree", *dimensions]))
    if unknown := [name for name in asked if name not in DIMENSIONS]:
        raise BenchmarkError(
            f"VBench measures {', '.join(unknown)} of its own prompts only; of any clips: {', '.join(DIMENSIONS)}"
        )
    if not python.is_file():
        raise BenchmarkError(
            f"{python}: no such file; install VBench in a separate environment and give its bin/python"
        )
    clips = sorted(path.name for path in videos.iterdir() if path.suffix.lower() in CLIPS) if videos.is_dir() else []
    if not clips:
        raise BenchmarkError(f"{videos}: no .mp4 or .gif; give a folder of clips")
    return {name: _checked(name, _run(python, videos, name, timeout_s), clips) for name in asked}


def _run(python: Path, videos: Path, dimension: str, timeout_s: float) -> Any:
    """The content of its result file: [mean, [{video_path, video_results}, ...]]."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--videos_path", str(videos.resolve()), "--dimension", dimension, "--output_path", folder]
        try:
            ran = subprocess.run(
                [str(python), "-m", "vbench.launch.evaluate", "--mode", "custom_input", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise BenchmarkError(f"VBench, {dimension}: {e}") from e
        results = list(Path(folder).glob("*_eval_results.json"))
        if ran.returncode or len(results) != 1:
            tail = "\n".join(ran.stdout.splitlines()[-LOG_TAIL:])
            raise BenchmarkError(f"VBench failed with {dimension} (status {ran.returncode}):\n{tail}")
        return json.loads(results[0].read_text())


def _checked(dimension: str, results: Any, clips: list[str]) -> Dimension:
    try:
        mean, values = results[dimension]
        found = {Path(each["video_path"]).name: float(each["video_results"]) for each in values}
        result = Dimension(float(mean), found)
    except (KeyError, TypeError, ValueError) as e:
        raise BenchmarkError(f"VBench wrote results of {dimension} in another format than 0.1.5 does: {e!r}") from e
    if missing := sorted(set(clips) ^ found.keys()):
        raise BenchmarkError(f"VBench and the folder differ for {dimension} in {len(missing)} clips: {missing[0]}, ...")
    if not all(map(math.isfinite, [result.mean, *found.values()])):
        raise BenchmarkError(f"VBench found values of {dimension} that are not finite")
    return result
