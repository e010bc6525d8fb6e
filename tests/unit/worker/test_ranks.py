"""Two processes that compute each clip together: the latents of one process, whatever a job asks for.

One further process with tiny models serves all tests; the last ones kill it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from tests.processes import is_running, wait_for
from tests.tiny_combined import LONG, LORAS, save_combined
from tests.tiny_models import save_model
from tests.tiny_sdxl import save_sdxl
from tests.tiny_sparse_control import generation as keeping
from tests.tiny_wan import save_wan
from worker.__main__ import processes_of
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.ranks import launch
from worker.child.ranks.leader import RankLost, Ranks
from worker.child.ranks.start import devices_of, ranks_per_unit
from worker.messages import Processes

CPU = torch.device("cpu")
IV_MIXED: dict[str, Any] = {"name": "iv-mixed", "interval": [0.0, 1.0]}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file; while it exists, the further rank has memory for as many frames at once as it says."""
    return tmp_path_factory.mktemp("room") / "frames"


@pytest.fixture(scope="module")
def losses() -> list[str]:
    return []


@pytest.fixture(scope="module")
def ranks(room: Path, losses: list[str]) -> Iterator[Ranks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "PROGRAM", "tests.limited_rank")
        patch.setenv("RANK_ROOM", str(room))
        with Ranks([CPU] * 2, log_format="text", on_loss=lambda: losses.append("lost")) as ranks:
            yield ranks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return save_model("animatediff", tmp_path_factory.mktemp("tiny"))


def request(entry: ModelEntry, **fields: Any) -> Generation:
    given = {"prompt": "a red circle moving left", "negative_prompt": "low quality", "seed": 5}
    return entry.resolve(VideoRequest.model_validate(given | {"num_inference_steps": 3} | fields))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Bit for bit where the kernels of the CPU do not depend on the number of rows; else their rounding."""
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def combined(folder: Path) -> tuple[ModelEntry, Generation, Path]:
    """LoRAs, context windows, SparseCtrl, weighted prompts of two windows."""
    entry, picture = save_combined(folder / "model"), folder / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    loras = [f"{name}:{scale}" for name, scale in LORAS.items()]
    given: dict[str, Any] = {"prompt": LONG, "clip_skip": 1, "num_frames": 7, "loras": loras}
    return entry, keeping(entry, picture, IV_MIXED, **given), picture


@pytest.mark.parametrize(
    ("save", "fields"),
    [
        pytest.param(lambda path: save_model("animatediff", path), {"sampler": IV_MIXED}, id="animatediff"),
        pytest.param(lambda path: save_model("modelscope", path), {"sampler": {"name": "official"}}, id="resized"),
        pytest.param(lambda path: save_model("videocrafter", path), {"sampler": IV_MIXED, "num_frames": 3}, id="fps"),
        pytest.param(save_sdxl, {"sampler": IV_MIXED}, id="pooled texts"),
        pytest.param(save_wan, {"sampler": {"name": "fused", "image_frames": "first"}}, id="wan"),
    ],
)
def test_latents_are_those_of_one_process(
    ranks: Ranks, tmp_path: Path, save: Callable[[Path], ModelEntry], fields: dict[str, Any]
) -> None:
    entry = save(tmp_path)
    wanted = request(entry, **fields)
    expected = Engine(entry, CPU).sample(wanted).latents
    assert_same(Engine(entry, ranks).sample(wanted).latents, expected)


def test_so_they_are_with_everything_that_a_request_can_combine(ranks: Ranks, tmp_path: Path) -> None:
    entry, wanted, picture = combined(tmp_path)
    one, two = Engine(entry, CPU), Engine(entry, ranks)
    plain = wanted.model_copy(update={"loras": ()})
    assert not torch.equal(one.sample(plain, reference=picture).latents, one.sample(wanted, reference=picture).latents)
    for generation in (wanted, plain, wanted):  # LoRAs on, off, and on again
        assert_same(
            two.sample(generation, reference=picture).latents, one.sample(generation, reference=picture).latents
        )


def test_sequence_parallel_call_is_that_of_one_process(ranks: Ranks, tmp_path: Path) -> None:
    """Two ranks share the tokens of both branches, as of each branch two of four do."""
    entry = save_wan(tmp_path)
    wanted = request(entry, guidance_scale=4, num_frames=9)
    expected = Engine(entry, CPU).sample(wanted).latents
    ranks.per_unit = 2
    try:
        assert_same(Engine(entry, ranks).sample(wanted).latents, expected)
    finally:
        ranks.per_unit = 1


def test_clip_without_room_in_the_other_rank_goes_on_in_low_memory_mode(
    ranks: Ranks, tiny: ModelEntry, room: Path
) -> None:
    wanted, two = request(tiny, num_frames=2, sampler={"name": "ddim", "network": "image"}), Engine(tiny, ranks)
    expected = two.sample(wanted)
    room.write_text("1")
    sampled = two.sample(wanted)
    assert (expected.low_memory, sampled.low_memory) == (False, True)
    assert (sampled.latents - expected.latents).abs().max() <= 1e-5
    room.write_text("0")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        two.sample(wanted)
    room.unlink()
    assert two.failed_message(caught.value).code == "out_of_memory"
    assert torch.equal(two.sample(wanted).latents, expected.latents), "the next clip has room again"


def test_model_that_another_rank_cannot_load_is_an_error_of_loading(ranks: Ranks, tiny: ModelEntry, room: Path) -> None:
    room.write_text("broken")
    with pytest.raises(ConfigurationError, match="the file is broken"):
        Engine(tiny, ranks)
    room.unlink()
    Engine(tiny, ranks)


@pytest.mark.parametrize(("gpus", "cpu_processes"), [(3, 1), (0, 1), (1, 8), (2, 2)])
def test_wrong_number_of_processes_is_refused(gpus: int, cpu_processes: int) -> None:
    with pytest.raises(ConfigurationError, match=f"--(gpus {gpus}|cpu-processes {cpu_processes})"):
        processes_of(gpus, cpu_processes)


def test_more_gpus_than_there_are_are_refused_before_loading() -> None:
    with pytest.raises(ConfigurationError, match=r"--gpus 4: torch finds no GPU .*--cpu-processes"):
        devices_of(Processes(4))
    assert devices_of(Processes(2, on_cpu=True)) == [CPU] * 2


def test_four_ranks_are_refused_where_half_would_be_idle(tmp_path: Path) -> None:
    entry = save_wan(tmp_path)
    assert (ranks_per_unit(entry, 2), ranks_per_unit(entry, 4)) == (1, 2)
    compiled = entry.model_copy(update={"optimise": entry.optimise.model_copy(update={"compile": True})})
    with pytest.raises(ConfigurationError, match=r"optimise\.compile"):
        ranks_per_unit(compiled, 4)
    with pytest.raises(ConfigurationError, match="CogVideoX"):
        ranks_per_unit(entry.model_copy(update={"family": "cogvideox"}), 4)


def test_killed_rank_ends_the_run_and_new_ones_resume_it_byte_for_byte(
    ranks: Ranks, tiny: ModelEntry, losses: list[str], tmp_path: Path
) -> None:
    wanted, file = request(tiny, sampler=IV_MIXED, num_inference_steps=6), tmp_path / "checkpoint"
    engine = Engine(tiny, ranks)
    undisturbed = engine.sample(wanted).latents

    def kill(state: Checkpoint) -> None:
        if state.step == 3:
            state.write(file)
            os.kill(ranks._others[0].process.pid, signal.SIGKILL)

    with pytest.raises(RankLost):
        engine.sample(wanted, on_step=kill)
    wait_for(lambda: losses, hint="for the watch to notice")
    steps: list[int] = []
    ranks.__exit__()
    with Ranks([CPU] * 2, log_format="text") as others:
        resumed = Engine(tiny, others).sample(wanted, on_step=lambda state: steps.append(state.step), resume=file)
    assert steps == [4, 5, 6]
    assert torch.equal(resumed.latents, undisturbed)
    steps.clear()
    Engine(tiny, CPU).sample(wanted, on_step=lambda state: steps.append(state.step), resume=file)
    assert steps[0] == 1, "another number of processes may round differently, so it begins again"


LEADER = """
import os, time
from worker.child.ranks.launch import launch
connection, process = launch(os.memfd_create("store"))
print(process.pid, flush=True)
time.sleep(600)
"""


def test_no_rank_outlives_the_first_even_if_it_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        pid = int(leader.stdout.readline())
        wait_for(lambda: ignores_sigterm(pid), hint="for its main loop to begin")
        os.kill(pid, signal.SIGSTOP)
        leader.kill()
    wait_for(lambda: not is_running(pid), timeout_s=10)


def ignores_sigterm(pid: int) -> bool:
    (ignored,) = re.findall(r"SigIgn:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)
