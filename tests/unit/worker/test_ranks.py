"""Two processes that compute each clip together: the latents of one process, whatever a job asks for.

One further process with tiny models serves all tests, and one of the last kills it. Kills in real workers are in
tests/integration/worker_faults/test_ranks.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sampler import ImageDenoiser, VideoDenoiser
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
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
from worker.child.engine import Engine
from worker.child.ranks import launch
from worker.child.ranks.leader import RankLost, Ranks
from worker.child.ranks.one_process import OneProcess
from worker.child.ranks.start import devices_of, ranks_per_unit
from worker.messages import Processes

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"sampler": {"name": "official"}, "num_inference_steps": 2, "num_frames": 2}
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


class OneAfterTheOther(OneProcess):
    """One process that calls the networks for each branch of guidance by itself, as two ranks do."""

    def split(self, image: ImageDenoiser, video: VideoDenoiser) -> None:
        image.sequential_cfg = video.sequential_cfg = True


def assert_same(entry: ModelEntry, two: Engine, *wanted: Generation, reference: Path | None = None) -> None:
    """Bit for bit the latents of the same calls in one process. Calls of both branches at once may round differently,
    3e-8 in one call, which a whole run of random networks makes larger."""
    split, whole = Engine(entry, OneAfterTheOther(CPU)), Engine(entry, CPU)
    for generation in wanted:
        found = two.sample(generation, reference=reference).latents
        assert torch.equal(found, split.sample(generation, reference=reference).latents)
        expected = whole.sample(generation, reference=reference).latents
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


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
        pytest.param(save_wan, {"sampler": {"name": "fused", "image_frames": "first"}}, id="wan"),
        pytest.param(partial(save_model, "videocrafter"), {"sampler": IV_MIXED}, id="fps", marks=pytest.mark.slow),
        pytest.param(partial(save_model, "modelscope"), SHORT, id="resized", marks=pytest.mark.slow),
        pytest.param(save_sdxl, {"sampler": IV_MIXED}, id="pooled texts", marks=pytest.mark.slow),
        pytest.param(
            partial(save_model, "animatediff"), {"sampler": IV_MIXED, "cache": {"name": "deep-cache"}}, id="DeepCache"
        ),
        pytest.param(save_wan, {"sampler": {"name": "ddim"}, "cache": {"name": "taylorseer"}}, id="block cache"),
    ],
)
def test_latents_are_those_of_one_process(
    ranks: Ranks, tmp_path: Path, save: Callable[[Path], ModelEntry], fields: dict[str, Any]
) -> None:
    entry = save(tmp_path)
    assert_same(entry, Engine(entry, ranks), request(entry, **fields))


def test_so_they_are_with_everything_that_a_request_can_combine(ranks: Ranks, tmp_path: Path) -> None:
    entry, wanted, picture = combined(tmp_path)
    plain = wanted.model_copy(update={"loras": ()})
    assert_same(entry, Engine(entry, ranks), wanted, plain, reference=picture)  # LoRAs on, and off again


def test_sequence_parallel_call_is_that_of_one_process(ranks: Ranks, tmp_path: Path) -> None:
    """Two ranks share the tokens of both branches, as of each branch two of four do."""
    entry = save_wan(tmp_path)
    wanted = request(entry, guidance_scale=4, num_frames=9)
    ranks.per_unit = 2
    try:
        found = Engine(entry, ranks).sample(wanted).latents
    finally:
        ranks.per_unit = 1
    assert torch.equal(found, Engine(entry, CPU).sample(wanted).latents)


def test_clip_without_room_in_the_other_rank_goes_on_in_low_memory_mode(
    ranks: Ranks, tiny: ModelEntry, room: Path
) -> None:
    wanted, two = request(tiny, num_frames=2, sampler={"name": "ddim", "network": "image"}), Engine(tiny, ranks)
    expected = two.sample(wanted)
    room.write_text("1")
    sampled = two.sample(wanted)
    assert (expected.low_memory, sampled.low_memory) == (False, True)
    assert (sampled.latents - expected.latents).abs().max() <= 1e-5 * expected.latents.abs().max()
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
    compiled = entry.model_copy(update={"optimise": Optimise(compile=True)})
    with pytest.raises(ConfigurationError, match=r"optimise\.compile"):
        ranks_per_unit(compiled, 4)
    with pytest.raises(ConfigurationError, match="CogVideoX"):
        ranks_per_unit(entry.model_copy(update={"family": "cogvideox"}), 4)


def test_run_resumes_byte_for_byte_with_as_many_processes_and_begins_again_with_another_number(
    ranks: Ranks, tiny: ModelEntry, tmp_path: Path
) -> None:
    wanted, file, engine = request(tiny, sampler=IV_MIXED), tmp_path / "checkpoint", Engine(tiny, ranks)
    undisturbed = engine.sample(wanted, on_step=lambda state: state.write(file) if state.step == 2 else None).latents

    def resumed(engine: Engine) -> tuple[Tensor, list[int]]:
        steps: list[int] = []
        return engine.sample(wanted, on_step=lambda state: steps.append(state.step), resume=file).latents, steps

    latents, steps = resumed(engine)
    assert steps == [3]
    assert torch.equal(latents, undisturbed)
    assert resumed(Engine(tiny, CPU))[1] == [1, 2, 3], "it may round differently"


def test_killed_rank_ends_the_run(ranks: Ranks, tiny: ModelEntry, losses: list[str]) -> None:
    engine = Engine(tiny, ranks)
    with pytest.raises(RankLost):
        engine.sample(request(tiny), on_step=lambda _: os.kill(ranks.pids[0], signal.SIGKILL))
    wait_for(lambda: len(losses) == 2, hint="for the watch to notice it too: a rank may end between two jobs")


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
