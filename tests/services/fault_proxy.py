"""A proxy on the loopback interface that breaks chosen HTTP/1.1 exchanges, and passes all others on unchanged.

Heads go through byte for byte, `Host` too, so that signed requests stay valid; of a body at most one piece is held. It does not
speak TLS, does not pipeline, and opens one upstream connection per request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

HOST = "127.0.0.1"
PIECE = 1 << 16
START_SECONDS = 10


# --- what can go wrong; offsets and sizes count the bytes of a body, whatever its transfer coding


@dataclass(frozen=True)
class ResetBefore:
    """The connection is reset before the upstream sees anything."""


@dataclass(frozen=True)
class ResetDuringUpload:
    """Both connections are reset after so many bytes of the request's body, or where it ends, if that is sooner."""

    after_bytes: int


@dataclass(frozen=True)
class ResetAfterCommit:
    """The upstream has done the work and answered; the client is told nothing."""


@dataclass(frozen=True)
class Status:
    """An answer in the upstream's stead, which sees nothing: S3's XML, or the JSON of OCI and the like."""

    code: int
    error_code: str = "InternalError"
    json: bool = False
    retry_after: int | None = None

    def answer(self, with_body: bool) -> bytes:
        if self.json:
            kind, body = "application/json", json.dumps({"code": self.error_code, "message": "injected"})
        else:
            kind = "application/xml"
            body = f"<?xml version='1.0'?><Error><Code>{escape(self.error_code)}</Code><Message>injected</Message></Error>"
        lines = [f"HTTP/1.1 {self.code} Injected", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
        if self.retry_after is not None:
            lines.append(f"Retry-After: {self.retry_after}")
        return ("\r\n".join(lines) + "\r\n\r\n" + (body if with_body else "")).encode()


@dataclass(frozen=True)
class Hang:
    """Silence for so long, then the connection is closed without an answer."""

    seconds: float


@dataclass(frozen=True)
class Truncate:
    """The response's body ends after so many bytes, whatever its head promised."""

    after_bytes: int


@dataclass(frozen=True)
class FlipBit:
    """The lowest bit of the response's byte at this offset is flipped. A shorter body passes unharmed."""

    offset: int


@dataclass(frozen=True)
class Delay:
    """Silence for so long, then all goes well."""

    seconds: float


Fault = ResetBefore | ResetDuringUpload | ResetAfterCommit | Status | Hang | Truncate | FlipBit | Delay


@dataclass(frozen=True)
class Seen:
    """A request that arrived, such as `PUT /bucket/key HTTP/1.1`, and what was done to it."""

    line: str
    fault: Fault | None


# --- the parts of HTTP/1.1 that a proxy has to know


class _ResetError(Exception):
    """The client's connection is to be reset."""


@dataclass(frozen=True)
class _Head:
    raw: bytes
    line: str
    fields: dict[str, str]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> _Head:
        raw = await reader.readuntil(b"\r\n\r\n")
        line, *rest = raw.decode("latin-1").strip().split("\r\n")
        pairs = (field.partition(":") for field in rest)
        return cls(raw, line, {name.strip().lower(): value.strip().lower() for name, _, value in pairs})

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def expects_continue(self) -> bool:
        return self.fields.get("expect") == "100-continue"

    @property
    def closes(self) -> bool:
        return self.fields.get("connection") == "close"

    def closing(self) -> bytes:
        """The same head, telling that the connection ends with this exchange: else a client would use it again."""
        return self.raw if self.closes else self.raw[:-2] + b"Connection: close\r\n\r\n"

    @property
    def chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").endswith("chunked")

    @property
    def length(self) -> int | None:
        return int(self.fields["content-length"]) if "content-length" in self.fields else None


@dataclass(frozen=True)
class _Piece:
    """Some bytes on the wire: of the body itself, or of the frame around its chunks."""

    data: bytes
    framing: bool = False


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[_Piece]:
    while size:
        data = await reader.read(min(size, PIECE))
        if not data:
            raise ConnectionError("the body ended early")
        size -= len(data)
        yield _Piece(data)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[_Piece]:
    while size := int((line := await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield _Piece(line, framing=True)
        async for piece in _exactly(reader, size):
            yield piece
        yield _Piece(await reader.readuntil(b"\r\n"), framing=True)
    while line != b"\r\n":  # the last chunk, the trailers, an empty line
        yield _Piece(line, framing=True)
        line = await reader.readuntil(b"\r\n")
    yield _Piece(line, framing=True)


async def _until_closed(reader: asyncio.StreamReader) -> AsyncIterator[_Piece]:
    while data := await reader.read(PIECE):
        yield _Piece(data)


def _request_body(reader: asyncio.StreamReader, request: _Head) -> AsyncIterator[_Piece]:
    return _chunks(reader) if request.chunked else _exactly(reader, request.length or 0)


def _answer_body(reader: asyncio.StreamReader, request: _Head, answer: _Head) -> tuple[AsyncIterator[_Piece], bool]:
    """And whether only the end of the connection ends it."""
    if request.method == "HEAD" or answer.status in (204, 304):
        return _exactly(reader, 0), False
    if answer.chunked:
        return _chunks(reader), False
    return (_until_closed(reader), True) if answer.length is None else (_exactly(reader, answer.length), False)


async def _first(pieces: AsyncIterator[_Piece], size: int) -> AsyncIterator[_Piece]:
    """The pieces up to so many bytes of the body."""
    async for piece in pieces:
        if piece.framing:
            yield piece
            continue
        yield _Piece(piece.data[:size])
        size -= len(piece.data)
        if size <= 0:
            return


async def _flipped(pieces: AsyncIterator[_Piece], offset: int) -> AsyncIterator[_Piece]:
    async for piece in pieces:
        if piece.framing:
            yield piece
            continue
        data = bytearray(piece.data)
        if 0 <= offset < len(data):
            data[offset] ^= 1
        offset -= len(data)
        yield _Piece(bytes(data))


async def _pass(pieces: AsyncIterator[_Piece], writer: asyncio.StreamWriter | None) -> None:
    async for piece in pieces:
        if writer:
            writer.write(piece.data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """A real RST, which a plain close would not send."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# --- the proxy


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: str
    times: int

    def matches(self, request: _Head) -> bool:
        return self.times > 0 and self.method in (None, request.method) and self.path in request.line.split(" ")[1]


class FaultProxy:
    """`with FaultProxy(host, port) as proxy: proxy.inject(ResetBefore(), method="PUT")`; clients talk to `proxy.url`."""

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self.upstream = (upstream_host, upstream_port)
        self.url = ""
        self.seen: list[Seen] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._stop: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @classmethod
    def before(cls, url: str) -> Self:
        """In front of the server at this URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or HOST, parts.port or 80)

    def inject(self, fault: Fault, *, method: str | None = None, path: str = "", times: int = 1) -> None:
        """The next requests with this method and this text in their path and query meet the fault. Faults queue up."""
        with self._lock:
            self._rules.append(_Rule(fault, method, path, times))

    def clear(self) -> None:
        """No more faults, and nothing seen."""
        with self._lock:
            self._rules.clear()
            self.seen.clear()

    def __enter__(self) -> Self:
        started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), name="fault-proxy", daemon=True)
        self._thread.start()
        self.url = started.result(START_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        if self._thread:
            self._thread.join(START_SECONDS)

    async def _main(self, started: Future[str]) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        try:
            server = await asyncio.start_server(self._serve, HOST, 0)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(f"http://{HOST}:{server.sockets[0].getsockname()[1]}")
        await stopped.wait()
        server.close()  # exchanges under way are cancelled as the loop ends

    def _take(self, request: _Head) -> Fault | None:
        with self._lock:
            rule = next((rule for rule in self._rules if rule.matches(request)), None)
            if rule:
                rule.times -= 1
            self.seen.append(Seen(request.line, rule.fault if rule else None))
            return rule.fault if rule else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except _ResetError:
            _reset(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is done, the upstream failed or the proxy stops: either way the client's connection ends
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the client's connection can carry another."""
        request = await _Head.read(reader)
        fault = self._take(request)
        match fault:
            case ResetBefore():
                raise _ResetError
            case Status():
                if not request.expects_continue:  # else the client waits with the body, and keeps it
                    await _pass(_request_body(reader, request), None)
                writer.write(fault.answer(with_body=request.method != "HEAD"))
                return False
            case Hang(seconds):
                await asyncio.sleep(seconds)
                return False
            case Delay(seconds):
                await asyncio.sleep(seconds)
        up_reader, up_writer = await asyncio.open_connection(*self.upstream)
        try:
            answer, whole = await self._send(request, fault, (reader, writer), (up_reader, up_writer))
            body, endless = _answer_body(up_reader, request, answer)
            match fault:
                case ResetAfterCommit():
                    await _pass(body, None)
                    raise _ResetError
                case Truncate(after_bytes):
                    body, endless = _first(body, after_bytes), True
                case FlipBit(offset):
                    body = _flipped(body, offset)
            writer.write(answer.raw if whole else answer.closing())
            await _pass(body, writer)
            return whole and not (endless or request.closes or answer.closes)
        finally:
            up_writer.transport.abort()  # a request cut short is never completed

    async def _send(
        self,
        request: _Head,
        fault: Fault | None,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> tuple[_Head, bool]:
        """Passes the request on; the head of the answer, and whether the request was wanted whole."""
        (reader, writer), (up_reader, up_writer) = client, upstream
        up_writer.write(request.raw)
        if request.expects_continue:
            answer = await _Head.read(up_reader)
            if answer.status != 100:
                return answer, request.length == 0  # an empty body is whole without being sent
            writer.write(answer.raw)
        body = _request_body(reader, request)
        if isinstance(fault, ResetDuringUpload):
            await _pass(_first(body, fault.after_bytes), up_writer)
            raise _ResetError
        await _pass(body, up_writer)
        return await _Head.read(up_reader), True
