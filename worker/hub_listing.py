"""What a Hugging Face hub says a repository contains. The hub is not trusted: every value is checked before it is used
as a path, a size or a hash."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from service.catalog.weight_files import LockedSource, Source
from service.errors import ConfigurationError

MAX_FILES = 100_000  # in a repository
MAX_FILE_BYTES = 2**50
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class RemoteFile:
    """A file in the hub's listing, which has the sha256 of LFS files only."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class RepoListing:
    revision: str
    files: dict[str, RemoteFile]


def read_listing(source: Source, locked: LockedSource | None, branch: str | None = None) -> RepoListing:
    """Files at the pinned commit, else at the locked one, else at the newest. Raises ConfigurationError.

    Args:
        branch: a branch, tag or commit instead.
    """
    wanted = source.revision if source.revision != "unpinned" else locked.revision if locked else branch
    try:
        info: Any = HfApi().model_info(str(source.repo), revision=wanted, files_metadata=True)
    except RevisionNotFoundError as e:
        raise ConfigurationError(
            f"{source.repo} has no branch or tag {wanted}"
            if branch
            else f"{source.repo} no longer has commit {wanted}; its history was rewritten. Pin another commit in "
            "the models file if you trust it"
        ) from e
    except RepositoryNotFoundError as e:
        raise ConfigurationError(f"{source.repo} is not on the hub, or needs HF_TOKEN") from e
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as e:
        raise ConfigurationError(f"{source.repo}: the hub is unreachable: {printable(e)}") from e
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ConfigurationError(f"{source.repo}: the hub's response is invalid: {printable(e)}") from e
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise ConfigurationError(f"{source.repo}: the hub returned {printable(repr(info.sha))}, which is no commit id")
    is_commit = wanted is not None and _COMMIT.fullmatch(wanted)
    if is_commit and info.sha != wanted:
        raise ConfigurationError(f"{source.repo}: asked for commit {wanted}, the hub returned {info.sha}")
    files = _files(str(source.repo), info.siblings or ())
    return RepoListing(info.sha, {file.path: file for file in files})


def _files(repo: str, siblings: Iterable[Any]) -> list[RemoteFile]:
    """Leaves out files that cannot be wanted; what is left has a safe path."""
    found = [file for sibling in siblings if (file := _file(repo, sibling)) is not None]
    if len(found) > MAX_FILES:
        raise ConfigurationError(f"{repo}: the hub lists {len(found)} files, more than {MAX_FILES}")
    return found


def _file(repo: str, sibling: Any) -> RemoteFile | None:
    name, size, sha256 = sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None
    if not is_safe_path(name):
        return None
    if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise ConfigurationError(f"{repo}: the hub gives {printable(name)} the size {printable(repr(size))}")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ConfigurationError(f"{repo}: the hub gives {printable(name)} the sha256 {printable(repr(sha256))}")
    return RemoteFile(name, size, sha256)


def is_safe_path(name: object) -> bool:
    """Whether a name is a plain relative path, which stays in any folder on any system."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+@ -]+(/[\w.+@ -]+)*", name, re.ASCII):
        return False
    parts = PurePosixPath(name).parts
    return name == "/".join(parts) and not {".", ".."} & set(parts) and all(len(part) <= 200 for part in parts)


def printable(value: object) -> str:
    """Without control characters, with which a hub could write anything to the terminal, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))[:300]
