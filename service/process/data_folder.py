"""The data folder: created, checked, and kept from other users of the machine (prompts, videos and keys are in it)."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.errors import DISK_FULL_ERRNOS, ConfigurationError

OURS = frozenset({"valkey", "storage", "scratch", "uploads", "models", "logs", "lost+found"})
PRIVATE = frozenset({"valkey", "storage", "scratch", "uploads", "logs"})
GROUP = stat.S_ISGID | stat.S_IRWXG
PROBE_BYTES = 4096


def prepare_folder(folder: Path, variable: str) -> None:
    """Create the folder if it is missing. Raises ConfigurationError if it cannot be listed or written."""
    try:
        if folder.is_symlink() and not folder.exists():
            raise ConfigurationError(f"{variable}={folder} is a symbolic link to nothing; {_way_out(variable)}")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.listdir(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
    except OSError as e:
        reason = "a file is in the way" if isinstance(e, FileExistsError | NotADirectoryError) else e.strerror
        way_out = (
            f"make room, or set {variable} to a folder on another disk"
            if e.errno in DISK_FULL_ERRNOS
            else _way_out(variable)
        )
        raise ConfigurationError(f"{variable}={folder}: {reason}; {way_out}") from e
    except RuntimeError as e:  # pathlib's error for a loop of symbolic links
        raise ConfigurationError(f"{variable}={folder}: {e}; {_way_out(variable)}") from e


def keep_private(folder: Path) -> None:
    """Let only this user read what this process creates, and what is in the folder from an earlier version.

    A folder that is set up for sharing, with the set-group-id bit and full access for its group as Kubernetes' fsGroup
    does it, stays open for that group. A folder that contains something else than our data keeps its own mode.
    """
    is_shared = _is_shared(folder)
    os.umask(0o007 if is_shared else 0o077)
    keep = 0o770 if is_shared else 0o700
    try:
        entries = list(os.scandir(folder))
    except OSError:  # reported when the folder is needed
        return
    for entry in entries:
        if entry.name in PRIVATE and entry.is_dir(follow_symlinks=False):
            _restrict_tree(entry.path, keep, always=entry.name == "valkey")
    if {entry.name for entry in entries} <= OURS:
        _restrict(str(folder), keep)


def _is_shared(folder: Path) -> bool:
    try:
        return folder.stat().st_mode & GROUP == GROUP
    except OSError:
        return False


def _restrict_tree(root: str, keep: int, *, always: bool) -> None:
    """Storages are large, so one whose own folder is private already is not walked again."""
    if not _restrict(root, keep) and not always:
        return
    for path in _descendants(root):
        _restrict(path, keep)


def _descendants(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        yield from (os.path.join(folder, name) for name in (*folders, *files))


def _restrict(path: str, keep: int) -> bool:
    """Remove the permissions outside `keep` if the file is ours. Returns whether it had any."""
    try:
        status = os.lstat(path)
        excess = stat.S_IMODE(status.st_mode) & 0o777 & ~keep
        if not excess or stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
            return False
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~excess)
    except OSError:  # deleted meanwhile, or on a file system without modes
        return False
    return True


def _way_out(variable: str) -> str:
    return f"set {variable} to a folder that this user can write"
