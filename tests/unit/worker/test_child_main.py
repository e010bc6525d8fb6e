"""One job as the child works on it, with the real demo models: what it answers and what it leaves in the storage."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import StorageError
from service.jobs.model import Job, Phase
from service.storage import FileStorage, StorageRetry, object_keys
from tests.factories import make_generation, make_job
from worker.child import main as child
from worker.child.checkpoint_writer import CheckpointWriter
from worker.child.engine import Engine
from worker.child.upload import Uploader
from worker.messages import Cancel, Done, Drain, Failed, Order, Progress, Run, Sampled, Stopped
from worker.scratch import Scratch

STEPS = 3


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "storage")


@pytest.fixture
def job() -> Job:
    return make_job(generation=make_generation(num_inference_steps=STEPS, sampler={"name": "ddim"}))


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    parent, ours = multiprocessing.Pipe()
    with parent, ours:
        yield parent, ours


def run(
    engine: Engine,
    storage: FileStorage,
    pipe: tuple[Connection, Connection],
    job: Job,
    *orders: Order,
    may_resume: bool = False,
) -> tuple[Done | Failed | Stopped, list[Progress]]:
    parent, ours = pipe
    for order in orders:
        parent.send(order)
    checkpoint_writer = CheckpointWriter(storage, object_keys.checkpoint(job.id), every_s=3600)
    with tempfile.TemporaryDirectory() as scratch:
        delivery = Uploader(storage, Scratch(Path(scratch)), StorageRetry(0.0))
        parents_second, second = multiprocessing.Pipe()
        with parents_second, second:
            finisher = child.Postprocessor(engine, child.ParentChannel(second), delivery)
            answer = child._run(
                engine, delivery, checkpoint_writer, finisher, child.ParentChannel(ours), Run(job, "e1", may_resume)
            )
            assert finisher.is_free(60)
            messages = [*_all(parent), *_all(parents_second)]
    if isinstance(answer, Sampled):
        answer = messages.pop()
    return answer, messages


def _all(channel: Connection) -> Iterator[Any]:
    while channel.poll():
        yield channel.recv()


def test_finished_job_is_in_the_storage_before_it_is_said(
    engine: Engine, storage: FileStorage, pipe: tuple[Connection, Connection], job: Job
) -> None:
    answer, messages = run(engine, storage, pipe, job, Cancel("another"), Drain("another"))
    assert isinstance(answer, Done)
    assert storage.size(answer.output.key) == answer.output.size_bytes
    assert messages[-1] == Progress(Phase.UPLOADING, STEPS, STEPS)
    assert set(answer.timings) == {Phase.ENCODING, Phase.SAMPLING, Phase.DECODING, Phase.UPLOADING}
    assert storage.size(object_keys.checkpoint(job.id)) is None


def test_drained_job_leaves_its_state_and_the_next_run_does_the_rest(
    engine: Engine, storage: FileStorage, pipe: tuple[Connection, Connection], job: Job, tmp_path: Path
) -> None:
    undisturbed, _ = run(engine, FileStorage(tmp_path / "elsewhere"), pipe, job)
    parent, _ = pipe
    say = parent.send

    def drain_after_a_step(phase: Phase, step: int, total: int) -> None:
        if (phase, step) == (Phase.SAMPLING, 2):
            say(Drain("e1"))

    sample = engine.sample

    def interrupted(generation, on_progress, **rest):  # type: ignore[no-untyped-def]
        def both(*progress):  # type: ignore[no-untyped-def]
            drain_after_a_step(*progress)
            on_progress(*progress)

        return sample(generation, both, **rest)

    engine.sample = interrupted  # type: ignore[method-assign]
    try:
        assert run(engine, storage, pipe, job)[0] == Stopped()
    finally:
        del engine.sample
    assert storage.size(object_keys.checkpoint(job.id))
    resumed, messages = run(engine, storage, pipe, job, may_resume=True)
    assert isinstance(resumed, Done)
    assert isinstance(undisturbed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    assert [p.step for p in messages if p.phase is Phase.SAMPLING] == [2, 3]


def test_cancelled_job_leaves_nothing(
    engine: Engine, storage: FileStorage, pipe: tuple[Connection, Connection], job: Job
) -> None:
    answer, messages = run(engine, storage, pipe, job, Cancel("e1"))
    assert answer == Stopped()
    assert len(messages) == 1
    assert list(storage.list("")) == []


def test_job_without_room_fails_and_the_same_process_makes_the_next_one(
    engine: Engine, storage: FileStorage, pipe: tuple[Connection, Connection], job: Job
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    hook = engine.models.video_unet.register_forward_pre_hook(full)
    try:
        answer, _ = run(engine, storage, pipe, job)
    finally:
        hook.remove()
        engine._was_out_of_memory = False
    assert isinstance(answer, Failed)
    assert (answer.code, answer.can_retry, answer.is_broken) == ("out_of_memory", False, False)
    assert isinstance(run(engine, storage, pipe, job)[0], Done)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_said_and_another_worker_may_try(
    engine: Engine,
    storage: FileStorage,
    pipe: tuple[Connection, Connection],
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    reason: int,
) -> None:
    def full(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("worker.child.video_encoder.write_thumbnail", full)
    answer, _ = run(engine, storage, pipe, job)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.can_retry) == ("no_space", True)


def test_storage_that_fails_is_not_the_jobs_fault(
    engine: Engine,
    storage: FileStorage,
    pipe: tuple[Connection, Connection],
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StorageError("down")

    monkeypatch.setattr(storage, "put", fails)
    answer, _ = run(engine, storage, pipe, job)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.can_retry) == ("storage_unavailable", False)
