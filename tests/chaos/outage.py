"""A reverse proxy in front of an S3 server, which passes everything on as it is until it is told to fail."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

UPSTREAM_SECONDS = 60
PIECE = 256 * 1024
OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client; each of its requests gets a connection of its own to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms between head and body
    error_content_type = "application/xml"
    error_message_format = "<Error><Code>%(message)s</Code><Message>%(explain)s</Message></Error>"
    server: "OutageProxy"

    def handle(self) -> None:
        """A client or server that goes away ends the connection, and is no error of the proxy."""
        with suppress(OSError, HTTPException):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the server has a log."""

    def _answer(self) -> None:
        if "Transfer-Encoding" in self.headers:
            self.send_error(501, "NotImplemented", "S3 takes no request in chunks.")
        elif self.server.refuses():
            for _ in self._body():  # a client that is cut off while it sends would miss the answer
                pass
            self.send_error(503, "ServiceUnavailable", "The proxy was told to fail.")
        else:
            with closing(HTTPConnection(*self.server.upstream, timeout=UPSTREAM_SECONDS)) as upstream:
                try:
                    response = self._ask(upstream)
                except (OSError, HTTPException) as exc:
                    self.send_error(502, "BadGateway", repr(exc))
                    return
                with response:
                    self._pass_back(response)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _answer

    def _ask(self, upstream: HTTPConnection) -> HTTPResponse:
        target = self.requestline.split()[1]  # self.path is not always as it came
        upstream.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        for piece in self._body():
            with suppress(BrokenPipeError, ConnectionResetError):  # a server may refuse before it has read all
                upstream.send(piece)
        return upstream.getresponse()

    def _body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            if not piece:
                raise ConnectionAbortedError("The client is gone.")
            left -= len(piece)
            yield piece

    def _pass_back(self, response: HTTPResponse) -> None:
        in_chunks = response.length is None
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in OF_ONE_CONNECTION:
                self.send_header(name, value)
        if in_chunks:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := response.read(PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if in_chunks else piece)
        if in_chunks:
            self.wfile.write(b"0\r\n\r\n")
        elif response.length:
            raise IncompleteRead(b"", response.length)


class OutageProxy(ThreadingHTTPServer):
    """Its address, and how many requests it has refused: a client's retries count."""

    daemon_threads = False  # all have ended when the proxy has
    request_queue_size = 128

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.upstream = urlsplit(upstream_url).hostname or "", urlsplit(upstream_url).port
        self.refused = 0
        self._is_failing = False
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Inside, each request that begins is answered with 503, and the server does not see it."""
        self._is_failing = True
        try:
            yield
        finally:
            self._is_failing = False

    def refuses(self) -> bool:
        """Asked once a request."""
        with self._lock:
            self.refused += self._is_failing
            return self._is_failing

    def get_request(self) -> tuple[socket.socket, Any]:
        """Remembers the connection."""
        client, address = super().get_request()
        self._clients.add(client)
        return client, address

    def shutdown_request(self, request: Any) -> None:
        """Forgets the connection."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Hangs up first: clients keep connections open for more requests, and threads would wait for these."""
        for client in self._clients.copy():
            with suppress(OSError):  # the client was first
                client.shutdown(socket.SHUT_RDWR)
        super().server_close()


@contextmanager
def s3_outage_proxy(upstream_url: str) -> Iterator[OutageProxy]:
    """Start the proxy of an `http://` server, and stop it in the end, with all its threads and connections."""
    with OutageProxy(upstream_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.1,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
