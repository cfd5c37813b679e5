"""Cutting a layer at its files, and laying it together again."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.runners.shape import PIECE_BYTES, Cutter, Shape, is_tar, parse_shape
from tests.images.runners.conftest import files_of, layer, noise


def cut(data: bytes) -> tuple[Shape, list[bytes]]:
    """Shape and pieces: those of contents, then those of headers."""
    cutter = Cutter(io.BytesIO(data).read, len(data))
    pieces = list(cutter.pieces())
    return cutter.shape, [p.data for p in pieces if not p.is_header] + [p.data for p in pieces if p.is_header]


def laid_out(shape: Shape, pieces: list[bytes]) -> bytes:
    out = bytearray(shape.size_bytes)
    begins, lengths = shape.content_pieces()
    for start, length, piece in zip(begins.tolist(), lengths.tolist(), pieces, strict=False):
        assert len(piece) == length
        out[start : start + length] = piece
    headers = b"".join(pieces[len(begins) :])
    for start, taken, length in shape.headers():
        out[start : start + length] = headers[taken : taken + length]
    return bytes(out)


def expect_the_same(data: bytes) -> tuple[Shape, list[bytes]]:
    shape, pieces = cut(data)
    assert shape.piece_count == len(pieces)
    assert max(map(len, pieces), default=0) <= PIECE_BYTES
    assert laid_out(parse_shape(shape.to_bytes(), "a shape"), pieces) == data
    return shape, pieces


def test_a_layer_comes_back_byte_for_byte():
    expect_the_same(layer(files_of()))


@given(st.binary(max_size=5000))
def test_what_is_no_tar_comes_back_too(data):
    expect_the_same(data)


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=150), st.binary(max_size=2000)), max_size=8),
    st.integers(0, 10_000),
    st.binary(),
)
def test_a_tar_that_was_cut_or_damaged_comes_back_too(named, at, garbage):
    data = layer({f"{n}{name}".replace("\0", ""): content for n, (name, content) in enumerate(named)})
    at = min(at, len(data))
    expect_the_same(data[:at] + garbage + data[at + len(garbage) :])
    expect_the_same(data[:at])


def test_links_folders_and_long_names_are_headers():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("bin", tarfile.DIRTYPE), ("sh", tarfile.SYMTYPE), ("ash", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "busybox", 0
            archive.addfile(member)
        long = tarfile.TarInfo("x" * 300)
        long.size = 10
        archive.addfile(long, io.BytesIO(b"0123456789"))
    shape, pieces = expect_the_same(out.getvalue())

    assert shape.runs["content"].tolist() == [10, 0]
    assert pieces[0] == b"0123456789"


def test_files_that_moved_and_aged_keep_their_pieces():
    files = files_of()
    moved = {"new": noise(9, 777), **files}

    before = {hashlib.sha256(p).digest() for p in cut(layer(files))[1]}
    after = [p for p in cut(layer(moved, mtime=1_800_000_000))[1] if hashlib.sha256(p).digest() not in before]

    assert sum(map(len, after)) < 777 + 2 * 1024 * (len(files) + 2)


def test_zeros_at_the_end_are_headers_and_an_empty_layer_is_a_tar():
    empty = layer({})

    assert is_tar(empty)
    assert not is_tar(b"{}" * 300)
    assert not is_tar(b"short")
    shape, _ = expect_the_same(empty)
    assert shape.header_bytes == len(empty)


def test_a_layer_that_ends_early_is_refused():
    data = layer(files_of(5))
    cutter = Cutter(io.BytesIO(data[:-2000]).read, len(data))

    with pytest.raises(IntegrityError, match=r"ended .* bytes early"):
        list(cutter.pieces())


def test_a_damaged_shape_is_refused():
    with pytest.raises(IntegrityError, match="layer 1 is no shape"):
        parse_shape(b"nonsense", "layer 1")
