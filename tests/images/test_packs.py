"""The format of packs and indexes, to the byte, and the table that finds blocks."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.drives import BLOCK_BYTES
from akidb_pipelines.images.packs import (
    FRAME_BYTES,
    BlockTable,
    Index,
    Pack,
    Packer,
    decompressed,
    digests_of,
    index_bytes,
    merged,
    parse_index,
)

HEAD, FRAME, ENTRY = struct.Struct("<4sHHII"), struct.Struct("<III"), struct.Struct("<32sQIII")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pack_up(blocks: list[bytes], *, image: str = "disk", pack_bytes: int = 16 << 20, first: int = 0) -> list[Pack]:
    with ThreadPoolExecutor(2) as pool:
        packer = Packer(image, pool, pack_bytes)
        packs = [pack for n, block in enumerate(blocks, first) for pack in packer.add(n, sha256(block), block)]
        return [*packs, *packer.finish()]


def parsed(pack: Pack) -> Index:
    return parse_index(pack.index, pack.name, "test")


def some_blocks(count: int, seed: int = 1) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(BLOCK_BYTES) for _ in range(count)]


def wanted(*digests: bytes) -> np.ndarray:
    return digests_of(b"".join(digests))


def read_back(table: BlockTable, packs: list[Pack], digests: list[bytes]) -> dict[bytes, bytes]:
    """What a reader finds, by digest."""
    data = {pack.name: pack.data for pack in packs}
    found = {}
    for place in table.places(table.rows(wanted(*digests))):
        frame = data[place.pack][place.start : place.start + place.stored_bytes]
        blocks = decompressed(frame, place.length, "test")
        found.update({digest: blocks[at : at + length] for _, digest, at, length in place.blocks})
    return found


# --- the format


def test_an_index_has_the_bytes_that_the_format_says():
    blocks = [*some_blocks(20), b"the drive ends here"]
    (pack,) = pack_up(blocks, image="jetson-a", first=5)

    data = pack.index

    magic, version, name_length, frame_count, entry_count = HEAD.unpack_from(data)
    assert (magic, version, frame_count, entry_count) == (b"AKIX", 1, 2, 21)
    at = HEAD.size
    assert data[at : at + name_length] == b"jetson-a"
    at += name_length
    frames = [FRAME.unpack_from(data, at + n * FRAME.size) for n in range(frame_count)]
    assert [start for start, _, _ in frames] == [0, frames[0][1]]
    assert sum(stored for _, stored, _ in frames) == len(pack.data)
    assert [length for _, _, length in frames] == [16 * BLOCK_BYTES, 4 * BLOCK_BYTES + 19]
    at += frame_count * FRAME.size
    entries = [ENTRY.unpack_from(data, at + n * ENTRY.size) for n in range(entry_count)]
    assert [(digest, number, length) for digest, number, _, _, length in entries] == [
        (sha256(block), n, len(block)) for n, block in enumerate(blocks, 5)
    ]
    assert [(frame, start) for _, _, frame, start, _ in entries] == [(n // 16, n % 16 * BLOCK_BYTES) for n in range(21)]
    assert len(data) == at + entry_count * ENTRY.size
    assert pack.name == sha256(data).hex()


def test_a_pack_is_zstd_frames_that_can_each_be_read_alone():
    blocks = some_blocks(40)
    (pack,) = pack_up(blocks)

    for n, (start, stored, length) in enumerate(parsed(pack).frames.tolist()):
        frame = pack.data[start : start + stored]
        assert zstandard.get_frame_parameters(frame).has_checksum
        assert zstandard.ZstdDecompressor().decompress(frame, length) == b"".join(blocks[n * 16 : n * 16 + 16])


def test_the_zstd_program_reads_a_pack_back_in_order():
    blocks = [*some_blocks(40), bytes(range(256)) * 256]
    (pack,) = pack_up(blocks)

    told = subprocess.run(["zstd", "-dc"], input=pack.data, capture_output=True, check=True)

    assert told.stdout == b"".join(blocks)


def test_an_index_comes_back_as_it_was_stored():
    (pack,) = pack_up(some_blocks(20), image="jetson-a")

    index = parsed(pack)

    assert (index.name, index.image) == (pack.name, "jetson-a")
    assert index_bytes(index.image, index.frames, index.entries) == pack.index


def test_the_same_blocks_make_the_same_pack():
    one, two = pack_up(some_blocks(40))[0], pack_up(some_blocks(40))[0]

    assert (one.name, bytes(one.data), one.index) == (two.name, bytes(two.data), two.index)


@pytest.mark.parametrize("at", [0, 4, 9, 14, 30, 60, 400, -1])
def test_an_index_with_a_wrong_byte_is_refused_with_its_name_and_what_to_do(at):
    (pack,) = pack_up(some_blocks(20))
    data = bytearray(pack.index)
    data[at] ^= 1

    with pytest.raises(IntegrityError, match="here is no index of a pack, or damaged") as caught:
        parse_index(bytes(data), pack.name, "here")

    assert "capture again" in caught.value.hint


@pytest.mark.parametrize("length", [0, 3, 12, 40, -1, -60])
def test_an_index_that_was_cut_is_refused(length):
    (pack,) = pack_up(some_blocks(20))

    with pytest.raises(IntegrityError, match="damaged"):
        parse_index(pack.index[:length], pack.name, "here")


def test_the_index_of_another_pack_is_refused():
    one, two = pack_up(some_blocks(1))[0], pack_up(some_blocks(2))[0]

    with pytest.raises(IntegrityError, match="damaged"):
        parse_index(one.index, two.name, "here")


def test_an_index_of_a_later_version_asks_for_an_upgrade():
    data = bytearray(pack_up(some_blocks(1))[0].index)
    data[4] = 2

    with pytest.raises(IntegrityError, match="version 2, this program reads 1") as caught:
        parse_index(bytes(data), sha256(bytes(data)).hex(), "here")

    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("damage", ["cut", "flipped", "shorter than told"])
def test_a_damaged_frame_is_refused_with_its_source(damage):
    (pack,) = pack_up(some_blocks(3))
    frame = bytearray(pack.data)
    length = 3 * BLOCK_BYTES
    if damage == "cut":
        frame = frame[:-10]
    elif damage == "flipped":
        frame[1000] ^= 1
    else:
        length += 1

    with pytest.raises(IntegrityError, match="pack 1234 is damaged"):
        decompressed(bytes(frame), length, "pack 1234")


# --- limits


def test_frames_hold_a_mebibyte_and_packs_no_more_than_they_may():
    blocks = some_blocks(100) + [bytes([n]) * BLOCK_BYTES for n in range(100)] + [b"short"] * 50
    packs = pack_up(blocks, pack_bytes=3 << 20)

    assert len(packs) > 2
    for pack in packs:
        assert len(pack.data) <= 3 << 20
        assert all(length <= FRAME_BYTES for _, _, length in parsed(pack).frames.tolist())
    assert sum(len(parsed(pack).entries) for pack in packs) == len(blocks)


def test_nothing_to_pack_makes_no_pack():
    assert pack_up([]) == []


# --- finding


def test_blocks_are_found_among_several_packs_and_the_newest_pack_has_them():
    old, new = some_blocks(30), some_blocks(30, seed=2)
    older = pack_up([*old, new[0]], pack_bytes=1 << 20)
    newer = pack_up(new, pack_bytes=1 << 20)
    table = BlockTable([parsed(pack) for pack in (*newer, *older)])

    rows = table.rows(wanted(*(sha256(b) for b in (*old, *new))))

    assert (rows >= 0).all()
    assert table.packs_of(rows[30:31])[0] < len(newer)
    assert [table.entry(row) for row in rows[30:32].tolist()] == [(0, sha256(new[0])), (1, sha256(new[1]))]
    assert read_back(table, [*newer, *older], [sha256(b) for b in old]) == {sha256(b): b for b in old}
    assert table.has(wanted(sha256(old[3]), b"\7" * 32)).tolist() == [True, False]


def test_an_empty_table_has_nothing():
    assert BlockTable().rows(wanted(b"\1" * 32)).tolist() == [-1]
    assert list(BlockTable().places(np.zeros(0, np.int64))) == []


def index_of(name: str, *digests: bytes) -> Index:
    """An index with invented digests: SHA-256 does not give two that begin alike."""
    entries = np.zeros(len(digests), [("digest", "V32"), ("number", "<u8"), ("frame", "<u4"), ("start", "<u4"), ("length", "<u4")])
    for n, digest in enumerate(digests):
        entries[n] = (digest, n, 0, n, 1)
    frames = np.array([(0, 9, len(digests))], [("start", "<u4"), ("stored", "<u4"), ("length", "<u4")])
    return Index(hashlib.sha256(name.encode()).hexdigest(), name, frames, entries)


def test_digests_that_begin_alike_are_told_apart():
    begin = b"\xff" * 8
    alike = [begin + bytes([n]) * 24 for n in range(5)]
    table = BlockTable([index_of("x", *alike[:2]), index_of("y", *alike[2:4], b"\0" * 7 + b"\1" + b"z" * 24)])

    rows = table.rows(wanted(*alike, begin + b"\0" * 23 + b"\1"))

    assert [table.entry(row)[1] for row in rows[:4].tolist()] == alike[:4]
    assert rows[4:].tolist() == [-1, -1]


@given(
    digests=st.lists(st.tuples(st.sampled_from([b"\0" * 8, b"\1" * 8, b"\xff" * 8]), st.integers(0, 5)), min_size=1, max_size=30),
    asked=st.lists(st.tuples(st.sampled_from([b"\0" * 8, b"\1" * 8, b"\xff" * 8]), st.integers(0, 6)), max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_the_table_finds_what_a_dictionary_finds(digests, asked):
    known = [begin + bytes(23) + bytes([n]) for begin, n in digests]
    looked_for = [begin + bytes(23) + bytes([n]) for begin, n in asked]
    half = len(known) // 2
    table = BlockTable([index_of("x", *known[:half]), index_of("y", *known[half:])])
    first = {digest: known.index(digest) for digest in known}

    assert table.rows(wanted(*looked_for)).tolist() == [first.get(digest, -1) for digest in looked_for]


@given(
    lengths=st.lists(st.sampled_from([1, 500, BLOCK_BYTES - 1, BLOCK_BYTES]), min_size=1, max_size=60),
    pack_bytes=st.sampled_from([1, 70_000, 1 << 20, 64 << 20]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_packed_is_found_and_read_back(lengths, pack_bytes, seed):
    draw = random.Random(seed)
    blocks = [draw.randbytes(16) * (length // 16) + draw.randbytes(length % 16) for length in lengths]
    packs = pack_up(blocks, pack_bytes=pack_bytes)
    table = BlockTable([parsed(pack) for pack in packs])
    asked = draw.sample(blocks, max(1, len(blocks) // 2))

    found = read_back(table, packs, [sha256(b) for b in asked])

    assert found == {sha256(b): b for b in asked}


def test_frames_that_adjoin_are_read_together_up_to_a_limit():
    blocks = some_blocks(64)
    (pack,) = pack_up(blocks)
    table = BlockTable([parsed(pack)])
    places = list(table.places(table.rows(wanted(*(sha256(b) for b in blocks)))))
    assert len(places) == 4

    together = list(merged(places, 64 << 20))
    by_two = list(merged(places, places[0].stored_bytes + places[1].stored_bytes))
    with_a_gap = list(merged([places[0], *places[2:]], 64 << 20))

    assert [len(run) for run in together] == [4]
    assert [len(run) for run in by_two] == [2, 2]
    assert [len(run) for run in with_a_gap] == [1, 2]
