"""Sockets of servers, opened by who chooses the port, and passed on to the process that serves.

`kycflow up` opens those of its servers itself. A port that it has chosen cannot be taken before its server listens, and
a server that is started again has the same one: meanwhile requests wait in the socket's queue. Which `kycflow up` an
answer is from stands in a header.
"""

import errno
import os
import socket

from tasks.errors import ConfigurationError

STACK_HEADER = "kycflow-stack"
"""Of each answer from a server of `kycflow up`: the id that stands in its stack.json."""
BACKLOG = 2048


def listen(host: str, port: int, ports: int = 1) -> socket.socket:
    """Listen on a port, or on the first free one of so many from there on.

    It must listen, not only be bound: two processes may bind the same port as long as neither listens.

    Raises:
        ConfigurationError: all of them are taken, or the address is not one of this machine.
    """
    for candidate in range(port, min(port + ports, 65_536)):
        try:
            family, *_, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise ConfigurationError(
                    f"Cannot listen on {host}, port {candidate}: {exc.strerror}. Choose another host or port."
                ) from exc
    taken = f"Port {port} is" if ports == 1 else f"Ports {port} to {port + ports - 1} are all"
    raise ConfigurationError(f"{taken} taken on {host}: stop what listens there, or choose another port.")


def inherited(fd: int) -> socket.socket:
    """The listening socket that who started this process has passed on."""
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


def address(listening: socket.socket) -> str:
    """Where a socket is reached over HTTP."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
