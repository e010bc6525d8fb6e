"""A TLS server in front of a plain one, for servers that are built without TLS."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading

from tests.certificates import Certificates

TLS_HANDSHAKE = b"\x16"  # the first byte


class TlsFront:
    """A context: the port on every loopback address.

    Args:
        takes_plain: also clients without TLS, such as the Sentinels of a server without it, which name its one port.
    """

    def __init__(
        self,
        target: int,
        certificates: Certificates,
        *,
        asks_for_certificate: bool = False,
        takes_plain: bool = False,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, certificates.server))
        if asks_for_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificates.authority)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                is_plain = takes_plain and self.request.recv(1, socket.MSG_PEEK) != TLS_HANDSHAKE
                with (
                    contextlib.suppress(OSError),
                    self.request if is_plain else context.wrap_socket(self.request, server_side=True) as client,
                    socket.create_connection(("127.0.0.1", target)) as server,
                ):
                    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                    back.start()
                    _copy(client, server)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("0.0.0.0", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> int:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
