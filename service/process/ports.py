"""Binds the port of a server before it starts, so that a port in use ends the process with a sentence."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from service.errors import ConfigurationError


def bind_port(host: str, port: int, variable: str) -> list[socket.socket]:
    """Sockets for every address of `host`, such as ::1 and 127.0.0.1 of localhost, all with the same port.

    Args:
        port: 0: any free port.
        variable: the setting of the port, for the message.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    with ExitStack() as bound:
        sockets: list[socket.socket] = []
        try:
            addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(addresses):
                chosen = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(bound.enter_context(_bound(family, (address[0], chosen, *address[2:]))))
                except OSError as e:
                    if not sockets or e.errno != errno.EADDRNOTAVAIL:  # localhost may have no ::1 here
                        raise
        except OSError as e:
            raise ConfigurationError(f"{variable}={port} on {host}: {_problem(e)}") from e
        bound.pop_all()
        return sockets


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    # asyncio turns off Nagle's algorithm only for sockets that name TCP; with it, a response waits 40 ms for an ACK.
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(address)
    except OSError:
        s.close()
        raise
    return s


def _problem(e: OSError) -> str:
    if isinstance(e, socket.gaierror):
        return f"there is no such address ({e.strerror}); correct IVMIX_HOST"
    if e.errno == errno.EADDRINUSE:
        return "the port is in use; choose another or stop the process that has it"
    if e.errno == errno.EACCES:
        return "this user may not use ports below 1024; choose another"
    if e.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have this address; correct IVMIX_HOST"
    return f"{e.strerror}; choose another port or correct IVMIX_HOST"
