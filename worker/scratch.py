"""Finished files on the local disk, kept until they are uploaded and the job is completed: sampling takes minutes, and
the storage may be unavailable when it ends.

One folder per execution; `finish` marks it as complete.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("ivmix.child")

KEEP_S = 86400.0  # a folder unclaimed for this long belongs to a job that ended elsewhere
MARK = "finished"


class Scratch:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, job_id: str, execution_id: str) -> Path:
        """An empty folder."""
        self.discard(job_id, execution_id)
        self.sweep()
        folder = self._folder(job_id, execution_id)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def finish(self, folder: Path) -> None:
        (folder / MARK).touch()

    def claim(self, job_id: str, execution_id: str) -> Path | None:
        """Take over the folder that an earlier execution of this job finished here. None if there is none."""
        ours = self._folder(job_id, execution_id)
        for mark in sorted((self._root / job_id).glob(f"*/{MARK}"), key=_age):
            try:
                os.rename(mark.parent, ours)  # atomic: only one process succeeds
            except OSError as e:
                log.info("cannot take over %s: %s", mark.parent, e.strerror)
            else:
                return ours
        return None

    def discard(self, job_id: str, execution_id: str) -> None:
        shutil.rmtree(self._folder(job_id, execution_id), ignore_errors=True)
        with suppress(OSError):  # not empty, or removed by another process
            (self._root / job_id).rmdir()

    def sweep(self) -> None:
        """Remove folders that no execution will claim."""
        oldest = time.time() - KEEP_S
        for folder in self._root.glob("*/*"):
            if _age(folder) < oldest:
                log.warning("removing stale %s", folder)
                self.discard(folder.parent.name, folder.name)

    def _folder(self, job_id: str, execution_id: str) -> Path:
        return self._root / job_id / execution_id


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return time.time()
