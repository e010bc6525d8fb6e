"""`ivmix recover`: rebuild the records of finished videos from what lies in the storage, when Redis was lost.

Changes no record that is there and no file; so it can be said again, and while the service runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from service.jobs.model import Job
from service.jobs.store import JobStore
from service.storage import VideoStorage, object_keys
from service.storage.manifest import is_manifest_key, manifests


class Finding(StrEnum):
    REBUILT = "rebuilt"
    KNOWN = "known"  # there is a record, whatever it says
    INCOMPLETE = "incomplete"  # some of its files are missing or changed, or the manifest cannot be read


@dataclass(frozen=True)
class Recovery:
    store: JobStore
    storage: VideoStorage
    retention_s: float
    is_rehearsal: bool = False  # look, but write nothing

    def run(self) -> Iterator[tuple[str, Finding]]:
        """One video after the other, in the order of their ids, dealt with before it is told. Raises StorageError."""
        for job_id in self._finished():
            yield job_id, self._look_at(job_id)

    def _finished(self) -> Iterator[str]:
        """Ids of the jobs of which some execution stored a manifest."""
        keys = (stored.key for stored in self.storage.list(object_keys.VIDEOS) if is_manifest_key(stored.key))
        for job_id, _ in groupby(keys, key=lambda key: key.split("/")[1]):
            yield job_id

    def _look_at(self, job_id: str) -> Finding:
        if self.store.exists(job_id):
            return Finding.KNOWN
        complete = (found for found in manifests(self.storage, job_id) if found.is_complete(self.storage))
        manifest = next(complete, None)
        if manifest is None:
            return Finding.INCOMPLETE
        if self.is_rehearsal or self.store.restore(self._record(manifest.job)):
            return Finding.REBUILT
        return Finding.KNOWN  # somebody else was quicker

    def _record(self, job: Job) -> Job:
        return job.model_copy(update={"expires_at": (job.completed_at or job.created_at) + self.retention_s})
