"""What `ivmix up` says when it has started: what works, what does not, what happens meanwhile, and what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from service.errors import NoSpace, ServiceError
from service.process.supervisor import Supervisor
from service.settings import Settings
from service.storage.free_space import FreeSpace
from service.wiring import open_storage


class StorageCheck(threading.Thread):
    """Tries the storage while models are loaded: one that is unreachable takes seconds to say so."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="storage-check", daemon=True)
        self._settings = settings
        self.problem = ""  # why the storage cannot be used; final when the thread has ended

    def run(self) -> None:
        try:
            open_storage(self._settings).check()
        except ServiceError as e:
            self.problem = e.message


def problems(supervisor: Supervisor, storage_problem: str) -> Iterator[str]:
    """One line for everything that does not work."""
    settings = supervisor.settings
    for model, problem in supervisor.problems.items():
        yield (
            f"model {model} cannot be loaded: {problem}. Unless another machine has it, its new videos are refused and "
            "queued ones fail within a minute. Correct what it says; the worker tries again by itself"
        )
    if storage_problem:
        yield (
            f"the storage is unreachable: {storage_problem}. Videos without an input_reference are accepted and made. "
            f"Finished ones wait in {settings.scratch_folder} for {settings.storage_retry_s:.0f} s "
            "(IVMIX_STORAGE_RETRY_S), then they fail; stored ones cannot be downloaded. Start the storage, which is "
            "tried again by itself, or correct IVMIX_S3_ENDPOINT_URL and start ivmix again; `ivmix doctor` checks it"
        )
    needs_disk = settings.needs_disk or settings.redis_url is None
    try:
        FreeSpace(settings.data_dir if needs_disk else None, settings.min_free_mb).require()
    except NoSpace:
        yield (
            f"new videos are refused: {settings.data_dir} has less than IVMIX_MIN_FREE_MB={settings.min_free_mb} MB of "
            "free space. Delete something; they are accepted as soon as there is room"
        )
