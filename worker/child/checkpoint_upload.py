"""Stores the latest checkpoint of one job, so that another worker can resume it.

Best effort: if a checkpoint cannot be stored, the job repeats the steps since the last one.
"""

from __future__ import annotations

import logging
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import StorageError
from service.storage import VideoStorage, sha256_of

if TYPE_CHECKING:  # it imports torch, which a test's checkpoints do not need
    from worker.child.checkpoint_file import Checkpoint

log = logging.getLogger("ivmix.child")

SAVE_S = 4.0  # how long a drain waits for the checkpoint: the worker has to exit


class CheckpointWriter:
    """States are written in a thread, one at a time: the GPU does not wait for the storage."""

    def __init__(self, storage: VideoStorage, key: str, *, every_s: float) -> None:
        self._storage, self._key, self._every_s = storage, key, every_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._latest: Checkpoint | None = None  # not saved yet
        self._last = time.monotonic()

    def fetch(self, folder: Path) -> Path | None:
        """Download the checkpoint of an earlier execution into `folder`. None if there is none."""
        path = folder / "checkpoint"
        try:
            if self._storage.size(self._key) is None:
                return None
            with path.open("wb") as file:
                file.writelines(self._storage.open(self._key))
            return path
        except (StorageError, OSError) as e:
            log.warning("no checkpoint: %s", e)
            return None

    def offer(self, state: Checkpoint) -> None:
        """Called after every step. Saves the state if a save is due, and drops it otherwise."""
        self._latest = state
        is_due = time.monotonic() - self._last >= self._every_s
        if is_due and (self._saving is None or self._saving.done()):
            self._save()

    def close(self, *, save_latest: bool = False) -> None:
        """The job is over here. Waits at most SAVE_S for the storage; maintenance removes what arrives later."""
        if save_latest and self._latest is not None:
            self._save()
        if self._saving is not None:
            wait([self._saving], SAVE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _save(self) -> None:
        assert self._latest is not None
        state, self._latest, self._last = self._latest, None, time.monotonic()
        self._saving = self._thread.submit(self._store, state)

    def _store(self, state: Checkpoint) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="ivmix-") as scratch:
                path = Path(scratch) / "checkpoint"
                state.write(path)
                self._storage.put(path, key=self._key, media_type="application/octet-stream", sha256=sha256_of(path))
        except (StorageError, OSError) as e:
            log.warning("checkpoint not stored: %s", e)
        except Exception:
            log.exception("checkpoint not stored")
