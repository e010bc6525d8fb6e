"""Types of settings: paths, lists, parts of URLs. Their errors show how to write the value."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

_HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
OBJECT_FOLDERS = frozenset({"videos", "checkpoints", "references"})  # as in storage/object_keys.py
MAX_PREFIX = 200
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _origin(value: str) -> str:
    """Browsers send the exact origin, so that anything else would never match."""
    match = re.fullmatch(rf"(https?)://({_HOST}|\[[0-9a-f:.]+\])(?::(\d{{1,5}}))?", value)
    if match is None or match[3] == _DEFAULT_PORTS[match[1]] or int(match[3] or 0) > 65535:
        raise ValueError(
            f"'{_without_user(value)}' is not an exact origin as browsers send it: scheme://host[:port] in lower case, "
            f"without path, trailing slash, query, user, wildcard and default port{_origin_hint(value)}"
        )
    return value


def _origin_hint(value: str) -> str:
    """The origin that was probably meant."""
    match = re.match(rf"(https?)://({_HOST}|\[[0-9a-f:.]+\])(:\d{{1,5}})?(?![^/?#])", value.lower())
    if match is None:
        return ""
    port = match[3] if match[3] and match[3] != f":{_DEFAULT_PORTS[match[1]]}" else ""
    return f"; write {match[1]}://{match[2]}{port}"


def _base_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", value, re.IGNORECASE):
        raise ValueError(f"'{_without_user(value)}' is not a base URL such as https://video.example.com or .../ivmix")
    return value


def _without_user(url: str) -> str:
    """Errors must not contain a password."""
    return re.sub(r"//.*@", "//...@", url)


def _host_name(entry: str) -> str:
    name = entry.strip("[]").lower().removesuffix(".")
    if not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]+", name):
        raise ValueError(f"'{entry}' is not a host name, .domain or address; write it without scheme, port and path")
    return name


def _network(entry: str) -> str:
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        raise ValueError(f"'{entry}' is not an address or network such as 10.0.0.0/8") from None
    return entry


def _path_prefix(value: str) -> str:
    if value and not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+", value):
        raise ValueError(f"'{value}' is not a path prefix such as /ivmix: it starts with a slash and ends without one")
    return value


def _model_alias(entry: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}=[A-Za-z0-9_.-]{1,64}", entry):
        raise ValueError(f"'{entry}' is not of the form alias=model, such as sora-2=demo")
    return entry


def expand_home(path: Path) -> Path:
    """With the home folder for `~` at the start, which only shells expand. Raises ValueError if there is none."""
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise ValueError(f"'{path}': there is no such home folder; write the path in full") from e


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file")
    return path


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _network_or_host(entry: str) -> str:
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        if not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", entry, re.IGNORECASE):
            raise ValueError(f"'{entry}' is not a network (10.0.0.0/8), host name or .domain") from None
    return entry


def _s3_prefix(value: str) -> str:
    """Stored with a slash at its end, or empty."""
    parts = value.removesuffix("/").split("/") if value else []
    if any(not re.fullmatch(r"[A-Za-z0-9!_.*'()-]+", part) or part in (".", "..") for part in parts):
        raise ValueError(
            f"'{value}' is not a prefix such as team-a/ivmix: letters, digits and !_.*'()- between single slashes, "
            "none at the start"
        )
    if reserved := OBJECT_FOLDERS.intersection(parts):
        raise ValueError(f"'{value}' contains '{min(reserved)}', a name of ivmix's own folders; choose another")
    if len(value) > MAX_PREFIX:
        raise ValueError(f"it has {len(value)} characters; {MAX_PREFIX} are possible")
    return "".join(f"{part}/" for part in parts)


def _storage_class(value: str) -> str:
    if value in ("GLACIER", "DEEP_ARCHIVE"):
        raise ValueError(f"objects of {value} cannot be read at once, as clients do; use GLACIER_IR or STANDARD_IA")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", value):
        raise ValueError(f"'{value}' is not a storage class such as STANDARD_IA")
    return value


class Section(str):
    """Marks the first field of a section of docs/settings.md."""


class Internal:
    """Marks a field that is not in docs/settings.md."""


T = TypeVar("T")
CommaSeparated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split)]
NetworkOrHost = Annotated[str, AfterValidator(_network_or_host)]
Delay = Annotated[float, Field(ge=0)]
ExpandedPath = Annotated[Path, AfterValidator(expand_home)]
ExistingFile = Annotated[ExpandedPath, AfterValidator(_existing_file)]
S3Prefix = Annotated[str, AfterValidator(_s3_prefix)]
StorageClass = Annotated[str, AfterValidator(_storage_class)]
Origin = Annotated[str, AfterValidator(_origin)]
HostName = Annotated[str, AfterValidator(_host_name)]
Network = Annotated[str, AfterValidator(_network)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
ModelAlias = Annotated[str, AfterValidator(_model_alias)]
