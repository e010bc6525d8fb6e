"""How people name a repository of a hub, or a file in it: owner/repo[@REVISION][/FILE], or the URL of its page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from service.catalog.weight_files import PICKLE_SUFFIXES
from service.errors import ConfigurationError

_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
_FILE = rf"[^:]+(?:{'|'.join(map(re.escape, _SUFFIXES))})"
_REPO = r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"  # names on a hub do not begin with a dot, as paths such as ./folder do
# A revision may have slashes, but ends at the first one where a file follows.
_SPEC = re.compile(
    rf"{_REPO}"
    r"(?:@(?P<revision>refs/[\w-]+/[\w.-]+|[\w.-]+|[\w./-]{1,200}))?"
    rf"(?:/(?P<file>{_FILE}))?",
    re.ASCII,
)
_PAGE = re.compile(rf"/{_REPO}(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?/?", re.ASCII)


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class HubSpec:
    """`revision`: a branch, tag or commit; None: the newest commit. `file`: None for the whole repository."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str, hubs: Callable[[], frozenset[str]]) -> Self | None:
        """None for what is no repository.

        Args:
            hubs: returns the host names of the hub that is used; called for a URL.

        Raises:
            ConfigurationError: a URL of another site, or of a page that is neither a repository nor a file.
        """
        if is_url(text):
            return cls._of_url(text, hubs())
        found = _SPEC.fullmatch(text)
        if found is None or found["repo"].endswith(_SUFFIXES):  # a path on this machine
            return None
        return cls(found["repo"], found["revision"], found["file"])

    @classmethod
    def _of_url(cls, url: str, hubs: frozenset[str]) -> Self:
        parts = urlsplit(url)
        if parts.netloc.lower() not in hubs:
            raise ConfigurationError(
                f"{url} is not on the hub ({', '.join(sorted(hubs))}); download the file and name it, or name a "
                "repository as owner/repo"
            )
        found = _PAGE.fullmatch(parts.path)
        if found is None or (found["file"] and not found["file"].endswith(_SUFFIXES)):
            raise ConfigurationError(
                f"{url} is neither a repository nor a file of weights in one; name owner/repo/FILE"
            )
        revision, file = (unquote(part) if part else None for part in found.group("revision", "file"))
        return cls(found["repo"], revision, file)
