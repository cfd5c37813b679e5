"""How a file is cut into pieces, and put together again byte for byte. docs/runner-images.md has the format.

A layer of a Docker image is a tar. Built again a week later, most files in it are the same, and hardly one lies where it lay, so fixed
blocks of the tar find nothing. Here every file's content is cut from its own beginning; what lies between (headers, padding) is gathered
into a stream of its own. A shape says how the two are laid one into the other:

    run      so many bytes of the header stream, then so many of content that begins a piece
    pieces   64 KiB each, the last of a run's content, and of the header stream, perhaps shorter

Everything else (a disk) is one run without headers. Reading the tar only chooses where to cut: where it is not understood, dedupe suffers
and no byte does. Values only; no store, no Docker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from akidb_pipelines.errors import IntegrityError

PIECE_BYTES = 65536
_TAR = 512
_REGULAR = (b"0", b"\0", b"7")
_RUNS = np.dtype([("header", "<u8"), ("content", "<u8")])


@dataclass(frozen=True)
class Shape:
    """How a file is laid out.

    Args:
        runs: bytes of headers and of content, alternating (fields `header`, `content`).
    """

    runs: NDArray[np.void]

    @classmethod
    def plain(cls, size_bytes: int) -> Shape:
        """Of a file that is no tar."""
        return cls(np.array([(0, size_bytes)], _RUNS))

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return int(self.runs["header"].sum() + self.runs["content"].sum())

    @property
    def header_bytes(self) -> int:
        """Of the header stream."""
        return int(self.runs["header"].sum())

    @property
    def header_pieces(self) -> int:
        """Pieces of the header stream."""
        return -(-self.header_bytes // PIECE_BYTES)

    @property
    def piece_count(self) -> int:
        """All pieces: those of contents in order, then those of the header stream."""
        return int((-(-self.runs["content"].astype(np.int64) // PIECE_BYTES)).sum()) + self.header_pieces

    def content_pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in the file each piece of content begins, and its length."""
        content = self.runs["content"].astype(np.int64)
        begins = np.cumsum(self.runs["header"].astype(np.int64) + content) - content
        counts = -(-content // PIECE_BYTES)
        run = np.repeat(np.arange(len(content)), counts)
        nth = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
        return begins[run] + nth * PIECE_BYTES, np.minimum(PIECE_BYTES, content[run] - nth * PIECE_BYTES)

    def headers(self) -> Iterator[tuple[int, int, int]]:
        """Where each run's headers begin in the file and in the header stream, and how long they are."""
        at = taken = 0
        for header, content in self.runs.tolist():
            if header:
                yield at, taken, header
            at, taken = at + header + content, taken + header

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(self.runs.tobytes())


def parse_shape(data: bytes, source: str) -> Shape:
    """Read what `to_bytes` made; `source` names it in messages.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return Shape(np.frombuffer(zstandard.ZstdDecompressor().decompress(data), _RUNS))
    except (zstandard.ZstdError, ValueError) as error:
        raise IntegrityError(f"{source} is no shape of a file: {error}", hint="archive the image again") from error


@dataclass(frozen=True)
class Piece:
    """A piece of a file."""

    data: bytes
    is_header: bool


class Cutter:
    """Cuts one tar while it is read.

    Args:
        read: returns as many of the next bytes as it is asked for.
        size_bytes: of the tar.
    """

    def __init__(self, read: Callable[[int], bytes], size_bytes: int) -> None:
        self._read, self._left = read, size_bytes
        self._runs: list[tuple[int, int]] = []
        self._header_run = 0
        self._headers = bytearray()

    @property
    def shape(self) -> Shape:
        """Of the tar, once all pieces were taken."""
        return Shape(np.array(self._runs, _RUNS))

    def pieces(self) -> Iterator[Piece]:
        """Every piece, in the order in which it is complete."""
        while self._left:
            header = self._take(min(_TAR, self._left))
            self._header_run += len(header)
            self._headers += header
            size, is_content = _announced(header, self._left)
            if is_content:
                yield from self._content(size)
                size = -size % _TAR
            padding = self._take(min(size + -size % _TAR if not is_content else size, self._left))
            self._header_run += len(padding)
            self._headers += padding
            while len(self._headers) >= PIECE_BYTES:
                yield Piece(bytes(self._headers[:PIECE_BYTES]), is_header=True)
                del self._headers[:PIECE_BYTES]
        if self._header_run or not self._runs:
            self._runs.append((self._header_run, 0))
        if self._headers:
            yield Piece(bytes(self._headers), is_header=True)

    def _content(self, size: int) -> Iterator[Piece]:
        self._runs.append((self._header_run, size))
        self._header_run = 0
        while size:
            data = self._take(min(PIECE_BYTES, size))
            size -= len(data)
            yield Piece(data, is_header=False)

    def _take(self, count: int) -> bytes:
        data = self._read(count) if count else b""
        if len(data) != count:
            raise IntegrityError(
                f"a layer ended {self._left - len(data)} bytes early", hint="the engine stopped sending: export the image again"
            )
        self._left -= count
        return data


def is_tar(block: bytes) -> bool:
    """Whether bytes begin a tar: a header, or the zeros that end an empty one."""
    return len(block) >= _TAR and (_is_header(block[:_TAR]) or not any(block[:_TAR]))


def _is_header(block: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes, those of the checksum itself taken for spaces."""
    try:
        told = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    return len(block) == _TAR and sum(block) - sum(block[148:156]) + 8 * 32 == told


def _announced(header: bytes, left: int) -> tuple[int, bool]:
    """How many bytes follow a header, and whether they are a file's content. What is no header is followed by content to the end."""
    if not _is_header(header):
        return (0, False) if not any(header) else (left, True)
    field = header[124:136]
    try:
        size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return left, True
    kind = header[156:157]
    if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        return 0, False  # links, devices and folders have no content, whatever their size says
    return (min(size, left), size > 0) if kind in _REGULAR else (min(size, left), False)
