"""A job that starts from a picture, in the child: the stored file reaches the engine, or the job says why not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import StorageError
from service.jobs.model import Job, Phase
from service.storage import FileStorage, object_keys, sha256_of
from tests.factories import make_generation, make_job
from tests.unit.worker.test_child_main import Child, outcome, running
from worker.child.autoencoder_turns import POLL_S
from worker.child.engine import Engine
from worker.messages import Done, Failed, Progress, Run, Stop, Stopped

ONE_STEP: dict[str, Any] = {"num_frames": 2, "num_inference_steps": 1, "sampler": {"name": "ddim"}}


@pytest.fixture
def child(engine: Engine, tmp_path: Path) -> Iterator[Child]:
    with running(engine, tmp_path / "data", storage_retry_s=5) as child:
        yield child


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two of four steps run."""
    Image.fromarray(np.full((48, 48, 3), (200, 40, 40), np.uint8)).save(tmp_path / "picture.png")
    sha256 = sha256_of(tmp_path / "picture.png")
    reference = {"sha256": sha256, "media_type": "image/png", "strength": 0.5}
    fields = {"num_frames": 2, "num_inference_steps": 4, "sampler": {"name": "ddim"}, "reference": reference}
    return make_job(generation=make_generation(**fields))


@pytest.fixture
def stored(child: Child, job: Job, tmp_path: Path) -> Job:
    assert job.generation.reference is not None
    key, sha256 = object_keys.reference(job.id), job.generation.reference.sha256
    child.storage.put(tmp_path / "picture.png", key=key, media_type="image/png", sha256=sha256)
    return job


def test_stored_picture_is_what_the_job_starts_from(child: Child, stored: Job) -> None:
    done, reports = child.run(stored)
    assert isinstance(done, Done)
    sampling = [report for report in reports if isinstance(report, Progress) and report.phase is Phase.SAMPLING]
    assert [(report.step, report.total) for report in sampling] == [(0, 2), (1, 2), (2, 2)]
    assert child.storage.size(object_keys.reference(stored.id)), "a run again needs it"


@pytest.fixture
def held_decoder(engine: Engine) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set when decoding has begun; to be set when it may go on."""
    begun, gate, decode = threading.Event(), threading.Event(), engine.models.vae.decode

    def held_decode(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert gate.wait(60)
        return decode(*args, **kwargs)

    engine.models.vae.decode = held_decode
    yield begun, gate
    gate.set()
    engine.models.vae.decode = decode


def test_wait_for_the_decoding_of_the_previous_clip_is_reported_and_is_no_gpu_time(
    child: Child, stored: Job, held_decoder: tuple[threading.Event, threading.Event]
) -> None:
    begun, gate = held_decoder
    with child.job(make_job(generation=make_generation(**ONE_STEP))) as pipe:
        assert begun.wait(60)
        with child.job(stored) as other:
            progress = (report for report in iter(other.recv, None) if isinstance(report, Progress))
            waits = list(islice(progress, 3))
            gate.set()
            assert isinstance(outcome(other)[0], Done)
        assert isinstance(outcome(pipe)[0], Done)
    assert [(wait.phase, wait.step) for wait in waits] == [(Phase.ENCODING, 0)] * len(waits)
    assert max(wait.gpu_seconds for wait in waits) < POLL_S / 2, "it waited for several times POLL_S"


def test_job_that_waits_for_the_previous_clip_can_be_cancelled(
    child: Child, stored: Job, held_decoder: tuple[threading.Event, threading.Event]
) -> None:
    begun, gate = held_decoder
    with child.job(make_job(generation=make_generation(**ONE_STEP))) as pipe:
        assert begun.wait(60)
        with child.job(stored) as other:
            other.send(Stop(save_checkpoint=False))
            assert outcome(other)[0] == Stopped()
        gate.set()
        assert isinstance(outcome(pipe)[0], Done)


def test_job_whose_file_is_gone_fails_at_once(child: Child, job: Job) -> None:
    failed, _ = child.run(job)
    message = "The file in input_reference is no longer stored; send the request again with the file."
    assert failed == Failed("reference_lost", message, can_retry=False)


def test_job_whose_file_is_another_one_fails(child: Child, stored: Job, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    key = object_keys.reference(stored.id)
    child.storage.put(tmp_path / "other", key=key, media_type="image/png", sha256=sha256_of(tmp_path / "other"))
    failed, _ = child.run(stored)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.can_retry) == ("reference_lost", False)
    assert "damaged in the storage" in failed.message


def broken_storage(monkeypatch: pytest.MonkeyPatch, key: str, then: Callable[[int], bytes | None]) -> list[int]:
    """`then` says what a download of the key gives, by its number; None: the object. Returns the numbers so far."""
    original, calls = FileStorage.open, list[int]()

    def opened(self: FileStorage, name: str, *others: Any) -> Generator[bytes]:
        if name != key:
            return original(self, name, *others)
        calls.append(len(calls) + 1)
        data = then(calls[-1])
        return original(self, name, *others) if data is None else (part for part in (data,))

    monkeypatch.setattr(FileStorage, "open", opened)
    return calls


def test_storage_that_fails_or_corrupts_for_a_moment_is_asked_again(
    child: Child, stored: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then(number: int) -> bytes | None:
        if number == 1:
            raise StorageError("down")
        return b"cut off" if number == 2 else None

    calls = broken_storage(monkeypatch, object_keys.reference(stored.id), then)
    assert isinstance(child.run(stored)[0], Done)
    assert calls == [1, 2, 3]


def test_storage_that_stays_away_ends_the_job(
    engine: Engine, stored: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_number: int) -> bytes:
        raise StorageError("down")

    with running(engine, tmp_path / "data", storage_retry_s=0.001) as impatient:
        broken_storage(monkeypatch, object_keys.reference(stored.id), down)
        failed, _ = impatient.run(stored)
    message = "The file in input_reference could not be read from the storage; try again."
    assert failed == Failed("storage_unavailable", message, can_retry=False)


def test_job_that_waits_for_its_file_can_be_cancelled(
    child: Child, stored: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child.pipe() as pipe:

        def down(_number: int) -> bytes:
            pipe.send(Stop(save_checkpoint=False))
            raise StorageError("down")

        calls = broken_storage(monkeypatch, object_keys.reference(stored.id), down)
        pipe.send(Run(stored, "e1"))
        assert outcome(pipe)[0] == Stopped()
    assert calls == [1]
