"""The manifest stored next to every finished video: a copy of its job record, from which records are rebuilt after a
loss of Redis. It is written after the files it names, so its presence proves that an execution finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from service.jobs.model import Job, JobState, Output
from service.storage import VideoStorage, object_keys, read

log = logging.getLogger("ivmix.storage")

FILE_NAME = "manifest.json"
MEDIA_TYPE = "application/json"


class _TolerantModel(BaseModel):
    # extra: later versions may add fields. hide_input: validation errors are logged, prompts must not be.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class StoredFile(_TolerantModel):
    key: str
    size_bytes: int
    sha256: str
    media_type: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name


class Manifest(_TolerantModel):
    """`job` is the record of the completed job, without its expiry time."""

    version: Literal[1] = 1
    job: Job
    files: tuple[StoredFile, ...]

    @classmethod
    def of(
        cls,
        job: Job,
        files: tuple[StoredFile, ...],
        output: Output,
        *,
        timings: Mapping[str, float],
        peak_memory_mb: float | None,
    ) -> Self:
        completed = {
            "state": JobState.COMPLETED,
            "completed_at": time.time(),
            "phase": None,
            "step": job.total_steps,
            "output": output,
            "timings": dict(timings),
            "peak_memory_mb": peak_memory_mb,
        }
        return cls(job=job.model_copy(update=completed), files=files)

    @property
    def output(self) -> Output:
        if self.job.output is None:
            raise ValueError(f"the manifest of {self.job.id} has no output")
        return self.job.output

    @property
    def key(self) -> str:
        """Key of the manifest: next to the video, in the folder of the execution that made it."""
        return str(PurePosixPath(self.output.key).with_name(FILE_NAME))

    def is_complete(self, storage: VideoStorage) -> bool:
        """Whether every file that it names is stored, unchanged."""
        return all(storage.matches(file.key, size_bytes=file.size_bytes, sha256=file.sha256) for file in self.files)


def manifests(storage: VideoStorage, job_id: str) -> Iterator[Manifest]:
    """The manifests of all finished executions of this job, the earliest first."""
    found = [
        manifest_at(storage, stored.key)
        for stored in storage.list(object_keys.videos(job_id))
        if is_manifest_key(stored.key)
    ]
    yield from sorted(filter(None, found), key=lambda manifest: manifest.job.completed_at or 0)


def manifest_at(storage: VideoStorage, key: str) -> Manifest | None:
    """The manifest stored under `key`; None, with a log line, if it is invalid or belongs to another video."""
    try:
        manifest = Manifest.model_validate_json(read(storage, key))
        if manifest.key != key or not key.startswith(object_keys.videos(manifest.job.id)):
            raise ValueError("it belongs to another key")
    except (ValidationError, ValueError) as e:
        log.warning("ignoring invalid manifest %s: %s", key, e)
        return None
    return manifest


def is_manifest_key(key: str) -> bool:
    return PurePosixPath(key).name == FILE_NAME


def delete_files(storage: VideoStorage, job_id: str, *, keep: str | None = None) -> None:
    """Delete everything that any execution of this job has stored, except keys that start with `keep`.

    Manifests go first: `ivmix recover` must not restore a half-deleted video.
    """
    keys = [stored.key for stored in storage.list(object_keys.videos(job_id))]
    for key in sorted(keys, key=lambda key: not is_manifest_key(key)):
        if keep is None or not key.startswith(keep):
            storage.delete(key)
    storage.delete(object_keys.checkpoint(job_id))


def delete_all_files(storage: VideoStorage, job_id: str) -> None:
    """Delete the files of a job whose record is gone. Until then `run_again` needs its reference."""
    delete_files(storage, job_id)
    storage.delete(object_keys.reference(job_id))
