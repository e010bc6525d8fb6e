"""Refuses new jobs before the disk of the queue and the videos is full: a full disk ends the embedded server."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from service.errors import NoSpace
from service.log_config import ONCE_A_MINUTE

log = logging.getLogger("ivmix.storage")

MB = 10**6


class FreeSpace:
    """
    Args:
        folder: None if neither the queue nor the storage is on this machine's disk.
        min_free_mb: 0 disables the check.
    """

    def __init__(self, folder: Path | None, min_free_mb: int) -> None:
        self._folder, self._min_free_mb = folder, min_free_mb

    def require(self) -> None:
        """Raises NoSpace. A disk that cannot be asked is no reason to refuse jobs."""
        if self._folder is None or not self._min_free_mb:
            return
        try:
            free_mb = shutil.disk_usage(self._folder).free // MB
        except OSError:
            return
        if free_mb < self._min_free_mb:
            log.error(
                "new jobs are refused: %s has less than IVMIX_MIN_FREE_MB=%d MB of free space; delete something",
                self._folder,
                self._min_free_mb,
                extra=ONCE_A_MINUTE,
            )
            raise NoSpace
