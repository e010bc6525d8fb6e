"""Notify systemd that a process has started, and that its main loop is alive: the units in deploy/systemd set
`Type=notify` and `WatchdogSec`.

The protocol is one datagram per message to the socket in $NOTIFY_SOCKET, sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class ServiceManager:
    def __init__(self, address: str | None = None) -> None:
        """
        Args:
            address: of systemd's socket; `@` begins an abstract one. None: nothing is sent.
        """
        self._address = "\0" + address[1:] if address is not None and address.startswith("@") else address
        self._is_started = False

    @classmethod
    def of_environment(cls) -> ServiceManager:
        """Sends nothing in a process that was not started by systemd with Type=notify."""
        return cls(os.environ.get("NOTIFY_SOCKET") or None)

    def beat(self) -> None:
        """The main loop is alive. The first call also ends systemd's start of the unit."""
        self._send("WATCHDOG=1" if self._is_started else "READY=1\nWATCHDOG=1")
        self._is_started = True

    def set_status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # Without waiting: a manager that does not read must not stop the process.
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with suppress(OSError), socket.socket(socket.AF_UNIX, flags) as connection:
            connection.sendto(message.encode(), self._address)
