"""Checks of folders and of the disks they are on. Creates nothing but a temporary file."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.process.data_folder import PRIVATE
from service.settings import Settings

MB = 10**6
FEW_INODES = 1000


def check_folders(settings: Settings) -> Findings:
    """Each folder that a process of this machine needs: can it be made and written, is there room, who can read it."""
    for variable, folder in _folders(settings):
        if (found := _unusable(variable, folder)) is not None:
            yield found
            continue
        yield from _space(variable, folder, settings.min_free_mb if variable == "IVMIX_DATA_DIR" else 0)
    yield from _readable_by_others(settings.data_dir)


def _folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    needs_data = settings.redis_url is None or settings.storage == "file"
    if needs_data or settings.scratch_dir is None:
        yield "IVMIX_DATA_DIR", settings.data_dir
    for variable, folder in (
        ("IVMIX_SCRATCH_DIR", settings.scratch_dir),
        ("IVMIX_UPLOAD_DIR", settings.upload_dir),
    ):
        if folder is not None:
            yield variable, folder


def _unusable(variable: str, folder: Path) -> Finding | None:
    """A missing folder counts as usable if it can be made."""
    advice = f"set {variable} to a folder that this user can write"
    try:
        existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
        if not existing.is_dir():
            return problem("folders", f"{variable}={folder}: {existing} is not a folder", advice)
        if existing != folder:
            may_write = os.access(existing, os.W_OK | os.X_OK)
            message = f"{variable}={folder} does not exist, and {existing} is not writable"
            return None if may_write else problem("folders", message, advice)
        os.listdir(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except (OSError, RuntimeError) as e:  # RuntimeError: a loop of symbolic links
        return problem("folders", f"{variable}={folder}: {getattr(e, 'strerror', None) or e}", advice)
    return None


def _space(variable: str, folder: Path, min_free_mb: int) -> Findings:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb, inodes = shutil.disk_usage(existing).free // MB, os.statvfs(existing)
    if free_mb < min_free_mb:
        message = (
            f"{variable}={folder}: {free_mb} MB are free, below IVMIX_MIN_FREE_MB={min_free_mb}: new videos get 503"
        )
        yield problem("disk", message, "delete something, or move the folder to another disk")
    elif free_mb < 2 * min_free_mb:
        message = f"{variable}={folder}: {free_mb} MB are free; below {min_free_mb} MB new videos get 503"
        yield warning("disk", message, "make room soon")
    elif inodes.f_files > 0 and inodes.f_favail < FEW_INODES:
        yield problem("disk", f"{variable}={folder}: the file system has {inodes.f_favail} inodes left", "delete files")
    else:
        state = "" if existing == folder else ", does not exist yet"
        yield ok("disk", f"{variable}={folder}: {free_mb} MB are free{state}")


def _readable_by_others(data_dir: Path) -> Findings:
    """What `keep_private` would close; another owner's folders it cannot."""
    for path in (data_dir, *(data_dir / name for name in sorted(PRIVATE))):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_uid not in (os.geteuid(), 0):
            message = f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}"
            yield problem("permissions", message, "run all processes as one user, or change the owner (chown -R)")
        elif status.st_mode & stat.S_IRWXO and path != data_dir:
            yield warning("permissions", f"other users can read {path}", f"run `chmod -R o= {path}`")
