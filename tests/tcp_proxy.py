"""A TCP proxy that can be taken away: connections end, and new ones are refused, as when a server's process is gone."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE = 64 * 1024


class TcpProxy:
    """Passes connections on to a server on this machine, until it is taken away."""

    def __init__(self, upstream: str) -> None:
        """Begins at once. `upstream` is the server's address, and `address` the same through the proxy."""
        parts = urlsplit(upstream)
        self._upstream = parts.hostname or "", parts.port or 80
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self.address = parts._replace(netloc=f"127.0.0.1:{self._port}").geturl()
        self._serve()

    def take_away(self) -> None:
        """End all connections, and refuse new ones."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else the thread that accepts keeps it open
        self._listener.close()
        for one in list(self._open):
            _close(one)

    def bring_back(self) -> None:
        """Take connections again."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                target.sendall(piece)
        for one in (source, target):
            self._open.discard(one)
            _close(one)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def tcp_proxy(upstream: str) -> Iterator[TcpProxy]:
    """One that is taken away in the end."""
    proxy = TcpProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.take_away()
