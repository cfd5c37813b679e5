"""Serving requests over a pipe, on a device. The protocol is written down in docs/image-format.md."""

from __future__ import annotations

import inspect
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from akidb_pipelines.images.agent.drive import DIGEST_BYTES, ZERO, AgentError, scan, write_blocks
from akidb_pipelines.images.agent.facts import check, facts
from akidb_pipelines.images.agent.freeze import Freezer

VERSION = 1
"""Of the protocol: counted up with every change of it."""
RECORD = struct.Struct("<QI32s")
"""Number of a block, length of the data that follows, digest. Of a block of zeros no data follows."""
END = 2**64 - 1
"""As a block's number: no more blocks; a reply follows."""
SO_FAR = 2**64 - 2
"""As a block's number: what was read so far. The digest's place holds two numbers: where, and how many bytes that took."""
POSITION = struct.Struct("<QQ16x")
_FLUSH_BYTES = 64 << 20
"""The other side hears at least so often that the drive is still being read."""


_PATIENCE_S = 600
"""So long nothing may come while blocks are to be written."""


def _given_up(_: int, __: object) -> None:
    raise SystemExit(f"nothing came for {_PATIENCE_S} s")


class Session:
    """One connection: requests are answered one after the other, until the other side is gone."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._freezer: Freezer | None = None
        self._last = bytearray()
        """Digests as the last scan left them."""

    def serve(self) -> None:
        """Answer requests. However it ends, nothing stays frozen."""
        self._reply({"agent": VERSION, "python": sys.version.split()[0], "uid": os.geteuid()})
        try:
            while True:
                head = self._source.read(4)
                if len(head) < 4:
                    return
                text = self._exactly(struct.unpack("<I", head)[0])
                try:
                    verb, request = self._understood(text)
                    reply = verb(**request)
                except (AgentError, OSError) as error:
                    reply = {"error": str(error)}
                self._reply(reply)
        finally:
            if self._freezer:
                self._freezer.thaw()

    def _understood(self, text: bytes) -> tuple[Callable[..., dict[str, Any]], dict[str, Any]]:
        try:
            request = json.loads(text.decode())
            verb = getattr(self, "do_" + request.pop("do"))
            inspect.signature(verb).bind(**request)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise AgentError(f"no request: {error!r}") from error
        return verb, request

    def do_facts(self, drive: str, facts_root: str) -> dict[str, Any]:
        """See `facts`."""
        return facts(drive, facts_root)

    def do_scan(
        self, drive: str, block_bytes: int, previous_bytes: int | None, data: bool, size_bytes: int | None = None
    ) -> dict[str, Any]:
        """Send every block that is not as the digests that follow the request say (None: as the last scan left them)."""
        if previous_bytes is not None:
            self._last = bytearray(self._exactly(previous_bytes))
        try:
            for position, read, blocks in scan(os.path.realpath(drive), block_bytes, self._last, size_bytes):
                for number, digest, content in blocks:
                    end = (number + 1) * DIGEST_BYTES
                    self._last.extend(bytes(max(0, end - len(self._last))))
                    self._last[end - DIGEST_BYTES : end] = digest
                    sent = content if data else b""
                    self._sink.write(RECORD.pack(number, len(sent), digest))
                    self._sink.write(sent)
                self._sink.write(RECORD.pack(SO_FAR, 0, POSITION.pack(position, read)))
                if position % _FLUSH_BYTES == 0:
                    self._sink.flush()
        finally:
            self._sink.write(RECORD.pack(END, 0, ZERO))
        return {}

    def do_freeze(self, mounts: list[str], read_only: list[str], seconds: int) -> dict[str, Any]:
        """See `Freezer`."""
        self._freezer = Freezer(mounts, read_only, seconds)
        return {}

    def do_thaw(self) -> dict[str, Any]:
        """Thaw; tells whether it was frozen until now."""
        freezer, self._freezer = self._freezer, None
        return {"frozen_until_now": freezer.thaw() if freezer else False}

    def do_write(self, drive: str, block_bytes: int) -> dict[str, Any]:
        """Write the blocks that follow the request."""
        records = self._records()
        try:
            return write_blocks(os.path.realpath(drive), block_bytes, records)
        finally:
            for _ in records:  # after an error, what is still under way must not be taken for requests
                pass

    def do_check(self, drive: str, partitions: list[dict[str, Any]]) -> dict[str, Any]:
        """See `check`."""
        return {"checks": check(drive, partitions)}

    def _records(self) -> Iterator[tuple[int, int, bytes]]:
        signal.signal(signal.SIGALRM, _given_up)
        while True:
            # A connection may be dead without a word; until we end, the drive is ours and nobody else can write it. Writing takes its time.
            signal.alarm(_PATIENCE_S)
            number, length, digest = RECORD.unpack(self._exactly(RECORD.size))
            data = b"" if number == END or digest == ZERO else self._exactly(length)
            signal.alarm(0)
            if number == END:
                return
            yield number, length, data

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise SystemExit("the connection was lost")
        return data

    def _reply(self, reply: dict[str, Any]) -> None:
        text = json.dumps(reply).encode()
        self._sink.write(struct.pack("<I", len(text)) + text)
        self._sink.flush()


def main() -> None:
    """Serve whoever sent this text."""
    Session(sys.stdin.buffer, os.fdopen(1, "wb", 1 << 20)).serve()
