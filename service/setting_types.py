"""Types of settings that are parts of URLs. Their errors show how to write the value."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

_HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
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


Origin = Annotated[str, AfterValidator(_origin)]
HostName = Annotated[str, AfterValidator(_host_name)]
Network = Annotated[str, AfterValidator(_network)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
