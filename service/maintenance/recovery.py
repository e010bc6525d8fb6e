"""`ivmix recover`: rebuilds the records of completed videos from their manifests in the storage, after Redis was lost.

It changes no existing record and no file, so it can be repeated, also while the service runs. Unfinished jobs cannot be
rebuilt; what they have left in the storage is named, and deleted only if that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from service.jobs.model import Job, inference_seconds
from service.jobs.store import JobStore
from service.storage import VideoStorage, object_keys
from service.storage.manifest import is_manifest_key, manifests

LOST_AFTER_S = 3600.0  # longer than a request, which stores its reference before there is a record


class RecoveryStatus(StrEnum):
    REBUILT = "rebuilt"
    KNOWN = "known"  # there is a record, in whatever state
    INCOMPLETE = "incomplete"  # files are missing or changed, or the manifest is damaged


@dataclass(frozen=True)
class Recovery:
    """Rebuilds records; `retention_s` is the lifetime of a video in seconds after its completion."""

    store: JobStore
    storage: VideoStorage
    retention_s: float
    dry_run: bool = False  # report them, but write nothing

    def run(self) -> Iterator[tuple[str, RecoveryStatus]]:
        """Handle one video after the other, in the order of their ids, and yield each status. Raises StorageError."""
        for job_id in self._job_ids():
            yield job_id, self._rebuild(job_id)

    def lost_files(self) -> Iterator[str]:
        """Keys of references and checkpoints of jobs that have neither a record nor a finished video. Raises
        StorageError."""
        finished, long_ago = set(self._job_ids()), time.time() - LOST_AFTER_S
        for prefix in (object_keys.REFERENCES, object_keys.CHECKPOINTS):
            for stored in self.storage.list(prefix):
                job_id = stored.key.removeprefix(prefix).partition(".")[0]
                if stored.modified_at < long_ago and job_id not in finished and not self.store.exists(job_id):
                    yield stored.key

    def _job_ids(self) -> Iterator[str]:
        """Yield the ids of all jobs with a manifest, which every execution stores last."""
        keys = (stored.key for stored in self.storage.list(object_keys.VIDEOS) if is_manifest_key(stored.key))
        for job_id, _ in groupby(keys, key=lambda key: key.split("/")[1]):
            yield job_id

    def _rebuild(self, job_id: str) -> RecoveryStatus:
        if self.store.exists(job_id):
            return RecoveryStatus.KNOWN
        complete = (manifest for manifest in manifests(self.storage, job_id) if manifest.is_complete(self.storage))
        manifest = next(complete, None)
        if manifest is None:
            return RecoveryStatus.INCOMPLETE
        if self.dry_run or self.store.restore(self._record(manifest.job)):
            return RecoveryStatus.REBUILT
        return RecoveryStatus.KNOWN  # another process restored it first

    def _record(self, job: Job) -> Job:
        """The manifest was written before the end: its GPU time is that of earlier executions."""
        gpu_ms = job.gpu_ms + round(1000 * inference_seconds(job.timings))
        expires_at = (job.completed_at or job.created_at) + self.retention_s
        return job.model_copy(update={"expires_at": expires_at, "gpu_ms": gpu_ms})
