"""A drive on a device, by the agent that is sent there for as long as the connection lasts. The client's side of the protocol.

docs/image-format.md has the protocol; `agent.serve` is the other side.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.images.agent import serve
from akidb_pipelines.images.drives import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    ZERO,
    Block,
    Checked,
    DriveFacts,
    Found,
    Partition,
    Scanned,
    Written,
    drive_error,
)
from akidb_pipelines.machines.ssh import Connection, Process

_PACKAGE = "akidb_pipelines.images.agent"
_LENGTH = struct.Struct("<I")

PATIENCE_S = 180.0
"""A device that says nothing for so long is given up. While it reads, it says something after every 64 MiB."""
_TOOLS_PATIENCE_S = 3900.0
"""But e2fsck may take its time, and so may a drive that must make durable what was written."""


def agent_text() -> bytes:
    """The agent's modules as one program: it makes the packages they live in, and begins to serve."""
    modules = {
        name: files(_PACKAGE).joinpath(f"{name}.py").read_text(encoding="utf-8") for name in ("drive", "facts", "freeze", "serve")
    }
    parents = [_PACKAGE.rsplit(".", n)[0] for n in (2, 1, 0)]
    return f"""
import sys, types
for name in {parents!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in {modules!r}.items():
    module = sys.modules[{_PACKAGE!r} + "." + name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
""".encode()


class RemoteDrive:
    """A drive on a device.

    Args:
        connection: how it is reached.
        path: on the device.
        facts_root: where the facts of its board are read.
    """

    def __init__(self, connection: Connection, path: str, facts_root: str = "/") -> None:
        self._connection, self._path, self._facts_root = connection, path, facts_root
        self.name = f"{connection.host.name}:{path}"
        self.sent_bytes = self.read_bytes = 0
        self._process: Process | None = None
        self._last: bytearray | None = None
        """What the agent's own memory of the digests is; it need not be sent again."""

    # --- the verbs of Drive

    def facts(self) -> DriveFacts:
        """See Drive."""
        return DriveFacts.parse(self._ask("looking at it", do="facts", drive=self._path, facts_root=self._facts_root))

    def scan(self, previous: bytes | bytearray, *, data: bool = True, size_bytes: int | None = None) -> Iterator[Scanned]:
        """See Drive."""
        tried = "reading it"
        process = self._open()
        known = self._last is not None and self._last == previous
        request = {"do": "scan", "drive": self._path, "block_bytes": BLOCK_BYTES, "data": data, "size_bytes": size_bytes}
        self._send(tried, request | {"previous_bytes": None if known else len(previous)}, b"" if known else previous)
        last = bytearray(previous)
        found: list[Found] = []
        self._last = None
        while True:
            number, length, digest = serve.RECORD.unpack(self._exactly(process, serve.RECORD.size, tried))
            if number == serve.END:
                break
            if number == serve.SO_FAR:
                position, read = serve.POSITION.unpack(digest)
                self.read_bytes += read
                yield Scanned(position, tuple(found))
                found = []
                continue
            end = (number + 1) * DIGEST_BYTES
            last.extend(bytes(max(0, end - len(last))))
            last[end - DIGEST_BYTES : end] = digest
            found.append(Found(number, digest, self._exactly(process, length, tried)))
        self._reply(process, tried)
        self._last = last

    def freeze(self, mounts: Sequence[str], read_only: Sequence[str], seconds: int) -> None:
        """See Drive."""
        self._ask("freezing it", do="freeze", mounts=list(mounts), read_only=list(read_only), seconds=seconds)

    def thaw(self) -> bool:
        """See Drive."""
        return bool(self._ask("thawing it", do="thaw")["frozen_until_now"])

    def write(self, blocks: Iterable[Block]) -> Written:
        """See Drive."""
        import hashlib

        tried = "writing it"
        process = self._open()
        self._last = None
        self._send(tried, {"do": "write", "drive": self._path, "block_bytes": BLOCK_BYTES})
        for number, length, data in blocks:
            digest = hashlib.sha256(data).digest() if data else ZERO
            self._write(process, tried, serve.RECORD.pack(number, length, digest), data)
        self._write(process, tried, serve.RECORD.pack(serve.END, 0, ZERO))
        return Written(**self._reply(process, tried, _TOOLS_PATIENCE_S))

    def check(self, partitions: Sequence[Partition]) -> tuple[Checked, ...]:
        """See Drive."""
        tried = "checking it"
        self._send(tried, {"do": "check", "drive": self._path, "partitions": [vars(p) for p in partitions]})
        told = self._reply(self._open(), tried, _TOOLS_PATIENCE_S)
        return tuple(Checked(**c) for c in told["checks"])

    def close(self) -> None:
        """See Drive."""
        process, self._process = self._process, None
        if process:
            process.close()

    # --- the wire

    def _open(self) -> Process:
        """The running agent; begins one if there is none."""
        if self._process is None:
            text = agent_text()
            # `python3 -` would read its program to the end of the input, and requests follow on the same input: hence the length.
            loader = f"import sys; exec(sys.stdin.buffer.read({len(text)}))"
            tried = "connecting"
            process = self._process = self._connection.run([self._connection.host.python, "-I", "-B", "-c", loader])
            self._write(process, tried, text)
            hello = self._reply(process, tried)
            if hello.get("agent") != serve.VERSION:
                raise OutsideError(f"{self.name}: the agent answered {hello}", hint="this is a bug: report it")
        return self._process

    def _ask(self, tried: str, **request: Any) -> dict[str, Any]:
        process = self._open()
        self._send(tried, request)
        return self._reply(process, tried)

    def _send(self, tried: str, request: dict[str, Any], more: bytes | bytearray = b"") -> None:
        process = self._open()
        text = json.dumps(request).encode()
        self._write(process, tried, _LENGTH.pack(len(text)) + text, more)

    def _write(self, process: Process, tried: str, *parts: bytes | bytearray) -> None:
        try:
            for part in parts:
                process.write(part, PATIENCE_S)
                self.sent_bytes += len(part)
        except OSError as error:
            raise self._lost(process, tried, error) from error

    def _reply(self, process: Process, tried: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(self._exactly(process, _LENGTH.size, tried, patience_s))
        reply: dict[str, Any] = json.loads(self._exactly(process, length, tried))
        if "error" in reply:
            raise drive_error(self.name, tried, reply["error"])
        return reply

    def _exactly(self, process: Process, size: int, tried: str, patience_s: float = PATIENCE_S) -> bytes:
        try:
            data = process.read(size, patience_s)
        except OSError as error:
            raise self._lost(process, tried, error) from error
        self.sent_bytes += len(data)
        return data

    def _lost(self, process: Process, tried: str, error: OSError) -> Exception:
        self._process = None
        return process.lost(tried, error)
