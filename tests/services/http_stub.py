"""What the stubs of object services share: a threaded server on 127.0.0.1, requests read whole, faults on demand.

It knows no service: a subclass says what is answered. It keeps every body in memory and serves nobody but tests.
"""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import struct
import sys
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

# --- faults


@dataclass(frozen=True)
class Reset:
    """The connection is reset before anything is done."""


@dataclass(frozen=True)
class ResetAfterCommit:
    """Everything is done as asked, but the connection is reset instead of an answer."""


@dataclass(frozen=True)
class Status:
    """Answers an error and does nothing."""

    code: int
    error_code: str = "InternalServerError"


@dataclass(frozen=True)
class Truncate:
    """Announces the whole answer and closes the connection after half of it."""


@dataclass(frozen=True)
class FlipBit:
    """One bit in the middle of the answer is wrong."""


@dataclass(frozen=True)
class Hang:
    """Holds the request so long before serving it as usual, even if its client has gone."""

    seconds: float


Fault = Reset | ResetAfterCommit | Status | Truncate | FlipBit | Hang


@dataclass(frozen=True)
class _Injected:
    fault: Fault
    method: str | None
    path: str

    def meets(self, request: Request) -> bool:
        return self.method in (None, request.method) and self.path in unquote(request.target)


# --- requests and answers


@dataclass(frozen=True)
class Request:
    """A request as it was on the wire; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @cached_property
    def path(self) -> str:
        """Still quoted, because signatures cover it so and because %2F is not a slash."""
        return urlsplit(self.target).path

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@dataclass(frozen=True)
class Call:
    """A request and what of a bucket it names."""

    request: Request
    bucket: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        return self.bucket, self.name

    @property
    def headers(self) -> dict[str, str]:
        return self.request.headers

    @property
    def query(self) -> dict[str, str]:
        return self.request.query


@dataclass(frozen=True)
class Answer:
    """An answer; `content-length` is added."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Exchange:
    """What the log keeps of a request; a status of 0 is a connection that was reset instead."""

    request: Request
    status: int


class RefusedError(Exception):
    """Raised by a stub to answer an error."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(f"{status} {code} {message}".rstrip())
        self.status, self.code, self.message = status, code, message


def ranged(request: Request, body: bytes) -> Answer:
    """The bytes asked for by `range`, or all. The caller adds what else it knows of the object."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None or asked.group() == "bytes=-":
        return Answer(200, {}, body)
    first, last = asked.groups()
    start, end = (int(first), int(last) if last else len(body) - 1) if first else (max(0, len(body) - int(last)), len(body) - 1)
    end = min(end, len(body) - 1)
    if start > end:
        raise RefusedError(416, "InvalidRange", f"the object has {len(body)} bytes, {asked.group()} was asked for")
    return Answer(206, {"content-range": f"bytes {start}-{end}/{len(body)}"}, body[start : end + 1])


# --- the server


class HttpStub(ABC):
    """A server in threads, alive inside `with`. Requests are authenticated side by side and served one after another."""

    tls: ssl.SSLContext | None = None

    def __init__(self) -> None:
        self.log: list[Exchange] = []
        self.closing = threading.Event()
        self._lock = threading.RLock()
        self._faults: list[_Injected] = []
        self._ids = itertools.count(1)

    # what a service says

    @abstractmethod
    def authenticate(self, request: Request) -> None:
        """Raises RefusedError for a request that is not signed as it should be."""

    @abstractmethod
    def serve(self, request: Request) -> Answer:
        """Does what is asked. Nobody else is served meanwhile, which makes conditional requests atomic."""

    @abstractmethod
    def error(self, refused: RefusedError) -> Answer:
        """An error in the service's own format."""

    @abstractmethod
    def sign_off(self, number: int) -> dict[str, str]:
        """Headers that every answer has."""

    # what tests use

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def inject(self, fault: Fault, method: str | None = None, path: str = "", times: int = 1) -> None:
        """The next `times` requests of that method, with `path` somewhere in their path and query, meet the fault."""
        with self._lock:
            self._faults += [_Injected(fault, method, path)] * times

    def __enter__(self) -> Self:
        self.closing.clear()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name=type(self).__name__).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()

    # what the server's threads use

    def take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            met = next((injected for injected in self._faults if injected.meets(request)), None)
            if met is not None:
                self._faults.remove(met)
        return met and met.fault

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        try:
            if isinstance(fault, Status):
                raise RefusedError(fault.code, fault.error_code, "injected by a test")
            self.authenticate(request)
            with self._lock:
                answer = self.serve(request)
        except RefusedError as refused:
            answer = self.error(refused)
        return Answer(answer.status, self.sign_off(next(self._ids)) | answer.headers, answer.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, stub: HttpStub) -> None:
        self.stub = stub
        self._live: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        if stub.tls:
            # The handshake waits for the connection's own thread, so that a client that stalls holds up nobody.
            self.socket = stub.tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        # Without the polite shutdown of the base class, which would turn a reset into an ordinary end.
        self._live.discard(request)
        request.close()

    def hang_up(self) -> None:
        """Ends the connections that clients keep open: nobody is to be answered by a stub that has left."""
        for connection in list(self._live):
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # also below TLS, which its own thread may be using
            except OSError:
                continue  # its thread was faster

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that leave, and TLS they do not trust, are no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request and writes an answer. `Expect: 100-continue` is answered by the base class before the body is read."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: the log is for tests to read."""

    def do_GET(self) -> None:
        stub = self.server.stub
        headers = {name.lower(): ",".join(self.headers.get_all(name)) for name in self.headers}
        request = Request(self.command, self.path, headers, self._body())
        fault = stub.take_fault(request)
        if isinstance(fault, Hang):
            stub.closing.wait(fault.seconds)
        answer = None if isinstance(fault, Reset) else stub.answer(request, fault)
        if answer is None or isinstance(fault, ResetAfterCommit):
            stub.log.append(Exchange(request, 0))
            self._reset()
        else:
            stub.log.append(Exchange(request, answer.status))
            self._write(answer, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names the base class looks for

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _write(self, answer: Answer, fault: Fault | None) -> None:
        body = answer.body
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if isinstance(fault, Truncate):
            self.close_connection = True
            body = body[: len(body) // 2]
        elif isinstance(fault, FlipBit) and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
