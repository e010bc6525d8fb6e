"""One job as the child works on it, with the real demo models: what it reports and what it leaves in the storage."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path

import pytest
import torch

from service.errors import StorageError
from service.jobs.model import Job, Phase
from service.settings import Settings
from service.storage import FileStorage, VideoStorage, object_keys, sha256_of
from service.storage.metrics import StorageCall
from service.wiring import open_storage
from tests.factories import make_generation, make_job
from worker.child.engine import Engine
from worker.child.latent_preview import open_previewer
from worker.child.main import serve
from worker.messages import Done, Failed, Progress, Ready, Report, Run, Sampled, Stop, Stopped

STEPS = 3


class Child:
    """The child's main loop in a thread, with the demo models that are loaded already."""

    def __init__(self, control: Connection, storage: VideoStorage) -> None:
        self._control, self.storage = control, storage

    @contextmanager
    def pipe(self) -> Iterator[Connection]:
        """Of a job that has not been sent yet."""
        ours, theirs = multiprocessing.Pipe()
        with ours:
            with theirs:
                send_handle(self._control, theirs.fileno(), os.getpid())
            yield ours

    @contextmanager
    def job(self, job: Job, *, may_resume: bool = False) -> Iterator[Connection]:
        with self.pipe() as pipe:
            pipe.send(Run(job, "e1", may_resume))
            yield pipe

    def run(self, job: Job, *, may_resume: bool = False) -> tuple[Report, list[Report]]:
        with self.job(job, may_resume=may_resume) as pipe:
            return outcome(pipe)


def outcome(pipe: Connection) -> tuple[Report, list[Report]]:
    """The last report of a job, and those before, without storage calls."""
    reports: list[Report] = []
    while not isinstance(report := pipe.recv(), Done | Failed | Stopped):
        if not isinstance(report, StorageCall):
            reports.append(report)
    return report, reports


@contextmanager
def running(
    engine: Engine, folder: Path, preview_seconds: float = 0, storage_retry_s: float = 0.001
) -> Iterator[Child]:
    settings = Settings(data_dir=folder, storage_retry_s=storage_retry_s, preview_seconds=preview_seconds)
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=(theirs, settings, lambda: engine))
    thread.start()
    with ours:
        assert isinstance(ours.recv(), Ready)
        yield Child(ours, open_storage(settings))
    thread.join(30)
    assert not thread.is_alive(), "the child ends when its parent closes the control pipe"


@pytest.fixture
def child(engine: Engine, tmp_path: Path) -> Iterator[Child]:
    with running(engine, tmp_path / "data") as child:
        yield child


@pytest.fixture
def job() -> Job:
    return make_job(generation=make_generation(num_frames=2, num_inference_steps=STEPS, sampler={"name": "ddim"}))


@contextmanager
def at_call(engine: Engine, number: int, do: Callable[[], None]) -> Iterator[None]:
    """`do` during this call of the video model; DDIM calls it once per step."""
    calls: list[object] = []

    def hook(*args: object) -> None:
        calls.append(args)
        if len(calls) == number:
            do()

    handle = engine.models.video_unet.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def undisturbed_and_resumed(engine: Engine, job: Job, reference: Path, folder: Path) -> tuple[Report, Report]:
    """Last reports of a job that one child runs, and of the same one that a child is stopped in and the next ends."""
    for name in ("undisturbed", "data"):
        with running(engine, folder / name) as child:
            key = object_keys.reference(job.id)
            child.storage.put(reference, key=key, media_type="image/png", sha256=sha256_of(reference))
            if name == "undisturbed":
                undisturbed, _ = child.run(job)
                continue
            with child.job(job) as pipe, at_call(engine, 3, lambda: pipe.send(Stop(save_checkpoint=True))):
                assert outcome(pipe)[0] == Stopped()
            resumed, _ = child.run(job, may_resume=True)
    return undisturbed, resumed


def test_finished_job_is_in_the_storage_before_it_is_reported(child: Child, job: Job) -> None:
    done, reports = child.run(job)
    assert isinstance(done, Done)
    assert child.storage.size(done.output.key) == done.output.size_bytes
    assert reports[-1] == Progress(Phase.UPLOADING, STEPS, STEPS)
    assert reports.index(Sampled()) < reports.index(Progress(Phase.DECODING, STEPS, STEPS))
    assert set(done.timings) == {Phase.ENCODING, Phase.SAMPLING, Phase.DECODING, Phase.UPLOADING}
    assert child.storage.size(object_keys.checkpoint(job.id)) is None


def test_storage_calls_are_reported_for_the_metrics_of_the_parent(child: Child, job: Job) -> None:
    with child.job(job) as pipe:
        calls: list[StorageCall] = []
        while not isinstance(report := pipe.recv(), Done):
            calls += [report] if isinstance(report, StorageCall) else []
    assert [call.operation for call in calls].count("put") == 4, "video, thumbnail, spritesheet, manifest"


def test_next_job_is_sampled_while_one_is_decoded(child: Child, engine: Engine, job: Job) -> None:
    second = make_job(generation=job.generation)
    is_second_sampling = threading.Event()
    decode = engine.models.vae.decode

    def slow_decode(*args, **kwargs):  # type: ignore[no-untyped-def]
        assert is_second_sampling.wait(60)
        return decode(*args, **kwargs)

    engine.models.vae.decode = slow_decode
    try:
        with at_call(engine, STEPS + 1, is_second_sampling.set), child.job(job) as pipe, child.job(second) as other:
            for each in (pipe, other):
                assert isinstance(outcome(each)[0], Done)
    finally:
        engine.models.vae.decode = decode


def test_drained_job_leaves_its_state_and_the_next_run_does_the_rest(
    child: Child, engine: Engine, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The undisturbed run has previews, the other none: they change no byte."""
    monkeypatch.setattr("worker.child.previews.SHARE", 1e9)
    with_previews = copy.copy(engine)
    with_previews._previewer = open_previewer(engine.models)
    with running(with_previews, tmp_path / "elsewhere", preview_seconds=1e-6) as other:
        undisturbed, reports = other.run(job)
    previews = [report.preview for report in reports if isinstance(report, Progress) and report.preview]
    assert previews
    assert all(preview[8:12] == b"WEBP" for preview in previews)
    with child.pipe() as pipe, at_call(engine, 2, lambda: pipe.send(Stop(save_checkpoint=True))):
        pipe.send(Run(job, "e1"))
        assert outcome(pipe)[0] == Stopped()
    assert child.storage.size(object_keys.checkpoint(job.id))
    resumed, reports = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert isinstance(undisturbed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    assert [p.step for p in reports if isinstance(p, Progress) and p.phase is Phase.SAMPLING] == [2, 3]


@pytest.mark.parametrize("number", [1, STEPS], ids=["first step", "last step"])
def test_cancelled_job_leaves_nothing(child: Child, engine: Engine, job: Job, number: int) -> None:
    with child.pipe() as pipe, at_call(engine, number, lambda: pipe.send(Stop(save_checkpoint=False))):
        pipe.send(Run(job, "e1"))
        last, reports = outcome(pipe)
    assert last == Stopped()
    assert reports[-1] == Progress(Phase.SAMPLING, number, STEPS)
    assert list(child.storage.list("")) == []


def test_job_without_room_fails_and_the_same_process_makes_the_next_one(child: Child, engine: Engine, job: Job) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    hook = engine.models.video_unet.register_forward_pre_hook(full)
    try:
        failed, _ = child.run(job)
    finally:
        hook.remove()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.can_retry, failed.is_broken) == ("out_of_memory", False, False)
    assert isinstance(child.run(job)[0], Done)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_reported_and_another_worker_may_try(
    child: Child, job: Job, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("worker.child.mp4.write_thumbnail", full)
    failed, _ = child.run(job)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.can_retry) == ("no_space", True)


def test_storage_that_fails_is_not_the_jobs_fault(child: Child, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StorageError("down")

    monkeypatch.setattr(FileStorage, "put", fails)
    failed, _ = child.run(job)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.can_retry) == ("storage_unavailable", False)
