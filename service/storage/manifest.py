"""What lies beside every finished video: all that its record says, so that records can be rebuilt when Redis is lost.

It is stored after the files it names, so a manifest in the storage means that an execution finished its work.
"""

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

NAME = "manifest.json"
MEDIA_TYPE = "application/json"


class _Readable(BaseModel):
    # A later version may know more fields. hide_input: what is wrong goes to the log, a prompt does not.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class StoredFile(_Readable):
    key: str
    size_bytes: int
    sha256: str
    media_type: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name


class Manifest(_Readable):
    """`job` is the record as it is when the video is completed, except for when it expires."""

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
            raise ValueError(f"the manifest of {self.job.id} names no output")
        return self.job.output

    @property
    def key(self) -> str:
        """Beside the video, wherever the execution that made it wrote."""
        return str(PurePosixPath(self.output.key).with_name(NAME))

    def is_complete(self, storage: VideoStorage) -> bool:
        """Whether every file it names lies in the storage, unchanged."""
        return all(storage.matches(file.key, size_bytes=file.size_bytes, sha256=file.sha256) for file in self.files)


def manifests(storage: VideoStorage, job_id: str) -> Iterator[Manifest]:
    """Of every execution of this job that finished, the earliest end first."""
    found = [
        manifest_at(storage, stored.key) for stored in storage.list(object_keys.videos(job_id)) if is_key(stored.key)
    ]
    yield from sorted(filter(None, found), key=lambda manifest: manifest.job.completed_at or 0)


def manifest_at(storage: VideoStorage, key: str) -> Manifest | None:
    """None, with a word in the log, for something that is no manifest of a video that lies there."""
    try:
        manifest = Manifest.model_validate_json(read(storage, key))
        if manifest.key != key or not key.startswith(object_keys.videos(manifest.job.id)):
            raise ValueError("it speaks of another place")
    except (ValidationError, ValueError) as e:
        log.warning("%s is not used: %s", key, e)
        return None
    return manifest


def is_key(key: str) -> bool:
    return PurePosixPath(key).name == NAME


def delete_files(storage: VideoStorage, job_id: str, *, keep: str | None = None) -> None:
    """Everything that any execution of this job stored, but what lies below `keep`.

    The manifests first: what is half gone must not come back.
    """
    keys = [stored.key for stored in storage.list(object_keys.videos(job_id))]
    for key in sorted(keys, key=lambda key: not is_key(key)):
        if keep is None or not key.startswith(keep):
            storage.delete(key)
    storage.delete(object_keys.checkpoint(job_id))
