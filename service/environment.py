"""Finds misspelt IVMIX_ variables, which would otherwise be ignored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from service.errors import ConfigurationError

PREFIX = "IVMIX_"

# Read outside of Settings: by the embedded server, `ivmix submit`, the tests, the supervisor's children,
# docker/compose.yaml.
OTHER_VARIABLES = (
    "IVMIX_REDIS_SERVER",
    "IVMIX_URL",
    "IVMIX_API_KEY",
    "IVMIX_CHROMIUM",
    "IVMIX_UMT_FEATURES",
    "IVMIX_SUPERVISOR",
    "IVMIX_READY_FD",
    "IVMIX_VERSION",
    "IVMIX_PUBLISH",
)

# Kubernetes and Docker tell every container the addresses of Services: a Service `ivmix-api` is IVMIX_API_SERVICE_HOST,
# IVMIX_API_PORT=tcp://10.0.0.1:8000, IVMIX_API_PORT_8000_TCP_ADDR and so on.
_SERVICE_NAME = re.compile(
    r"IVMIX_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def is_service_address(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable: IVMIX_PORT is also the address of a Service `ivmix`."""
    name = name.upper()
    return bool(_SERVICE_NAME.fullmatch(name)) or (name.endswith("PORT") and bool(_SERVICE_ADDRESS.fullmatch(value)))


def refuse_unknown_variables(environ: Mapping[str, str], settings: Collection[str]) -> None:
    """
    Args:
        settings: field names of Settings.

    Raises:
        ConfigurationError: a variable with our prefix is none of ours; names the most similar one.
    """
    known = [*(PREFIX + name.upper() for name in settings), *OTHER_VARIABLES]
    unknown = [
        name
        for name, value in sorted(environ.items())
        if name.upper().startswith(PREFIX) and name.upper() not in known and not is_service_address(name, value)
    ]
    if unknown:
        raise ConfigurationError("; ".join(_problem(name, known) for name in unknown))


def _problem(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name.upper(), known, 1, cutoff=0.0)
    return f"there is no setting {name}; did you mean {nearest[0]}? docs/settings.md lists all; unset it or correct it"
