"""Fetches the picture or clip that a video starts from, as the API stored it with the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.errors import ServiceError, StorageError
from service.jobs.model import Job
from service.storage import StorageRetry, VideoStorage, object_keys, sha256_of

MOST_DAMAGED = 3  # downloads with a wrong checksum; more are not the network's fault


class ReferenceLost(ServiceError):
    """The storage has no such object, or another one, so another attempt would fail too."""

    code = "reference_lost"

    def __init__(self, what: str) -> None:
        super().__init__(f"The file in input_reference is {what}; send the request again with the file.")


class ReferenceUnreachable(ServiceError):
    """The storage could not be read for as long as this is retried."""

    code = "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The file in input_reference could not be read from the storage; try again.")


def fetch_reference(
    storage: VideoStorage, job: Job, folder: Path, retry: StorageRetry, *, on_wait: Callable[[], None]
) -> Path | None:
    """Download the job's reference into `folder`. None if the job has none.

    Args:
        on_wait: called while the storage is waited for; an exception from it ends the wait.

    Raises:
        ReferenceLost, ReferenceUnreachable: see the classes.
    """
    if job.generation.reference is None:
        return None
    key, path, sha256 = object_keys.reference(job.id), folder / "reference", job.generation.reference.sha256
    damaged = 0

    def download() -> None:
        nonlocal damaged
        if storage.size(key) is None:
            raise ReferenceLost("no longer stored")
        with path.open("wb") as file:
            file.writelines(storage.open(key))
        if sha256_of(path) != sha256:
            damaged += 1
            if damaged == MOST_DAMAGED:
                raise ReferenceLost("damaged in the storage")
            raise StorageError(f"{key} arrived with another checksum")

    try:
        retry.call(download, on_wait=on_wait)
    except StorageError as e:
        raise ReferenceUnreachable from e
    return path
