"""Reads URLs of Redis Sentinels: redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE.

User, password and database are those of the primary. `rediss+sentinel://` uses TLS for it and for the Sentinels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

FORM = "redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE (rediss+sentinel:// for TLS)"
DEFAULT_PORT = 26379

_URL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?:(?P<user>[^@/?#]*)@)?(?P<nodes>[^@/?#]+)/(?P<service>[^/?#@]+)"
    r"(?:/(?P<database>\d*))?(?:\?(?P<query>[^#]*))?"
)
_NODE = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class SentinelUrl:
    nodes: tuple[tuple[str, int], ...]  # host and port of each Sentinel
    service: str  # the name under which the Sentinels know the primary
    primary: str  # URL with user, password, database and options of the primary, and a host without meaning
    credentials: dict[str, str]  # of the Sentinels: username, password
    is_tls: bool

    def node_urls(self) -> list[str]:
        """Addresses of the Sentinels, without credentials."""
        scheme = "rediss" if self.is_tls else "redis"
        return [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.nodes]

    def __str__(self) -> str:
        """Without user and password, for messages."""
        addresses = ", ".join(url.partition("//")[2] for url in self.node_urls())
        return f"the primary '{self.service}' of the Sentinels {addresses}"


def is_sentinel(url: str) -> bool:
    return re.match(r"rediss?\+sentinel://", url) is not None


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Raises ValueError, without the URL, if it is not of the form FORM."""
    if not (found := _URL.fullmatch(url)):
        raise ValueError(f"is not of the form {FORM}; write / # ? @ : in a password as %2F %23 %3F %40 %3A")
    options = parse_qsl(found["query"] or "", keep_blank_values=True)
    credentials = {
        name.removeprefix("sentinel_"): value
        for name, value in options
        if name in ("sentinel_username", "sentinel_password")
    }
    query = urlencode([(name, value) for name, value in options if not name.startswith("sentinel_")])
    user = f"{found['user']}@" if found["user"] else ""
    return SentinelUrl(
        nodes=tuple(_node(number, text) for number, text in enumerate(found["nodes"].split(","), 1)),
        service=found["service"],
        primary=f"{found['scheme']}://{user}primary/{found['database'] or 0}{f'?{query}' if query else ''}",
        credentials=credentials,
        is_tls=found["scheme"] == "rediss",
    )


def _node(number: int, text: str) -> tuple[str, int]:
    found = _NODE.fullmatch(text.strip())
    port = int(found["port"] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port <= 65535:  # the text may be a password
        raise ValueError(f"does not name HOST:PORT as Sentinel number {number}; its form is {FORM}")
    return found["host"].strip("[]"), port
