"""The agent as a device gets it: one text, the oldest Python there is, and a session that outlives mistakes."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from akidb_pipelines.images.agent import serve
from akidb_pipelines.images.agent.drive import SEGMENT_BYTES, ZERO
from akidb_pipelines.images.agent.facts import facts
from akidb_pipelines.images.remote import agent_text
from akidb_pipelines.lab.facts import board_facts

MODULES = sorted((Path(serve.__file__).parent).glob("*.py"))
BLOCK = 65536

pytestmark = pytest.mark.timeout(60)


@cache
def oldest_python() -> str:
    """The oldest Python from 3.8 on that this machine has and that runs."""
    folders = [*os.environ["PATH"].split(":"), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    found = (shutil.which(f"python3.{minor}", path=folder) for minor in range(8, 20) for folder in folders)
    for path in filter(None, found):
        if subprocess.run([path, "-I", "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return sys.executable


class Talk:
    """A session with the agent, spoken by hand."""

    def __init__(self) -> None:
        command = [oldest_python(), "-I", "-S", "-c", agent_text().decode()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.hello = self.reply()

    def send(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def ask(self, text: bytes | None = None, more: bytes = b"", **request) -> None:
        told = json.dumps(request).encode() if text is None else text
        self.send(struct.pack("<I", len(told)) + told + more)

    def exactly(self, size: int) -> bytes:
        data = self.process.stdout.read(size)
        assert len(data) == size, self.process.stderr.read().decode()
        return data

    def reply(self) -> dict:
        return json.loads(self.exactly(struct.unpack("<I", self.exactly(4))[0]))

    def records(self) -> list[tuple[int, bytes, bytes]]:
        """What a scan sends; how far it is goes to `positions`."""
        found = []
        self.positions: list[tuple[int, int]] = []
        while True:
            number, length, digest = serve.RECORD.unpack(self.exactly(serve.RECORD.size))
            if number == serve.END:
                return found
            if number == serve.SO_FAR:
                self.positions.append(serve.POSITION.unpack(digest))
                continue
            found.append((number, digest, self.exactly(length)))

    def works(self) -> bool:
        self.ask(do="thaw")
        return self.reply() == {"frozen_until_now": False}


@pytest.fixture
def talk():
    talk = Talk()
    with talk.process:
        yield talk
        talk.process.stdin.close()
        assert talk.process.wait(10) == 0, talk.process.stderr.read().decode()
        assert talk.process.stderr.read() == b""


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)
def test_modules_are_python_3_8_and_import_the_standard_library_only(module):
    tree = ast.parse(module.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)

    foreign = {n for n in names if n.partition(".")[0] not in sys.stdlib_module_names}

    assert {n.rpartition(".")[0] for n in foreign} <= {"akidb_pipelines.images.agent"}


def test_it_is_one_program_and_says_who_it_is(talk):
    assert talk.hello["agent"] == serve.VERSION
    assert talk.hello["uid"] == os.geteuid()
    assert talk.works()


def test_it_ends_with_its_input_and_says_nothing():
    talk = Talk()
    out, err = talk.process.communicate(timeout=10)
    assert (talk.process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize(
    "text",
    [
        b"no json \xff",
        b"[]",
        b"7",
        b"{}",
        b'{"do": "dance"}',
        b'{"do": 3}',
        b'{"do": "thaw", "how": "slowly"}',
        b'{"do": "facts"}',
        b'{"do": "facts", "drive": "/nowhere", "facts_root": "/"}',
        b'{"do": "check", "drive": "/nowhere", "partitions": []}',
        b'{"do": "freeze", "mounts": ["/nowhere"], "read_only": [], "seconds": 1}',
    ],
)
def test_what_it_does_not_understand_or_cannot_do_is_an_error_and_the_session_goes_on(talk, text):
    talk.ask(text)

    assert set(talk.reply()) == {"error"}
    assert talk.works()


def test_a_scan_sends_what_differs_and_remembers_it(talk, tmp_path):
    drive = tmp_path / "drive.img"
    blocks = [os.urandom(BLOCK), bytes(BLOCK), os.urandom(BLOCK), b"the end"]
    drive.write_bytes(b"".join(blocks))
    first = hashlib.sha256(blocks[0]).digest()
    previous = first + b"x" * 32
    asked = {"do": "scan", "drive": str(drive), "block_bytes": BLOCK, "data": True, "size_bytes": None}

    talk.ask(**asked, previous_bytes=len(previous), more=previous)
    sent = talk.records()
    told = talk.reply()
    talk.ask(**asked, previous_bytes=None)

    assert sent == [(1, ZERO, b""), *((n, hashlib.sha256(blocks[n]).digest(), blocks[n]) for n in (2, 3))]
    assert (told, talk.positions) == ({}, [(3 * BLOCK + 7, 3 * BLOCK + 7)])
    assert (talk.records(), talk.reply()) == ([], {})


def test_a_scan_says_how_far_it_is_and_how_much_it_read(talk, tmp_path):
    drive = tmp_path / "drive.img"
    with drive.open("wb") as out:
        out.write(os.urandom(5 << 20))
        out.truncate(17 << 20)

    talk.ask(do="scan", drive=str(drive), block_bytes=BLOCK, data=False, previous_bytes=0, size_bytes=None)

    assert {data for _, _, data in talk.records()} == {b""}
    assert talk.reply() == {}
    ends = [position for position, _ in talk.positions]
    read = [read for _, read in talk.positions]
    assert ends == [*range(SEGMENT_BYTES, 17 << 20, SEGMENT_BYTES), 17 << 20]
    assert sum(read) == 6 << 20, "whole segments of what is no hole"
    assert read[-1] == 0


def test_a_scan_ends_where_it_is_told(talk, tmp_path):
    drive = tmp_path / "drive.img"
    drive.write_bytes(os.urandom(3 * BLOCK))

    talk.ask(do="scan", drive=str(drive), block_bytes=BLOCK, data=True, previous_bytes=0, size_bytes=BLOCK + 10)

    data = drive.read_bytes()
    assert [content for _, _, content in talk.records()] == [data[:BLOCK], data[BLOCK : BLOCK + 10]]
    assert talk.reply() == {}


def test_a_scan_of_a_drive_that_is_not_there_is_an_error_and_the_session_goes_on(talk):
    talk.ask(do="scan", drive="/nowhere", block_bytes=BLOCK, data=True, previous_bytes=32, size_bytes=None, more=ZERO)

    assert talk.records() == []
    assert "No such file" in talk.reply()["error"]
    assert talk.works()


def record(number: int, data: bytes) -> bytes:
    return serve.RECORD.pack(number, len(data), hashlib.sha256(data).digest()) + data


END = serve.RECORD.pack(serve.END, 0, ZERO)


def test_blocks_are_written_and_zeroed(talk, tmp_path):
    drive = tmp_path / "drive.img"
    drive.write_bytes(b"x" * 3 * BLOCK)

    talk.ask(do="write", drive=str(drive), block_bytes=BLOCK)
    talk.send(record(2, b"two") + serve.RECORD.pack(0, BLOCK, ZERO) + END)

    assert talk.reply() == {"written_bytes": 3, "zeroed_bytes": BLOCK}
    assert drive.read_bytes() == bytes(BLOCK) + b"x" * BLOCK + b"two" + b"x" * (BLOCK - 3)


@pytest.mark.parametrize("when", ["at the beginning", "in the middle"])
def test_a_write_that_fails_is_told_and_what_is_still_under_way_is_no_request(talk, small_disk, when):
    drive = small_disk / "drive.img"
    if when == "in the middle":
        drive.touch()
    blocks = [os.urandom(BLOCK) for _ in range(100)]  # more than the disk has room for

    talk.ask(do="write", drive=str(drive), block_bytes=BLOCK)
    for n, block in enumerate(blocks):
        talk.send(record(n, block))
    talk.send(END)

    told = talk.reply()["error"]
    assert ("No such file" if when == "at the beginning" else "No space left") in told
    assert talk.works()


def test_a_connection_that_ends_in_a_write_leaves_what_came_and_no_process(tmp_path):
    drive = tmp_path / "drive.img"
    drive.write_bytes(bytes(4 * BLOCK))
    talk = Talk()

    talk.ask(do="write", drive=str(drive), block_bytes=BLOCK)
    talk.send(record(1, b"one") + record(2, os.urandom(BLOCK))[:1000])
    _, err = talk.process.communicate(timeout=10)

    assert (talk.process.returncode, err) == (1, b"the connection was lost\n")
    assert drive.read_bytes()[: BLOCK + 3] == bytes(BLOCK) + b"one"


# --- facts


def test_a_jetsons_facts_are_read_from_its_own_files(tmp_path):
    for path, content in board_facts(drive_model="Samsung 980", drive_serial="S64D", board_serial="142").items():
        target = tmp_path / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    drive = tmp_path / "nvme0n1"
    drive.write_bytes(bytes(4096))

    told = facts(str(drive), str(tmp_path / "root"))

    order, first, second = told["efi_entries"]
    assert order == "BootOrder: 0000,0001"
    assert first.startswith("Boot0000* UEFI Samsung 980 S64D 1 [01000000")
    assert second.startswith("Boot0001* UEFI Shell [")
    assert (told["board_spec"], told["board_serial"]) == ("3701-500-0005-G.0-1-0-jetson-agx-orin-devkit-", "142")
    assert (told["drive_model"], told["drive_serial"]) == ("Samsung 980", "S64D")
    assert told["board_model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert told["l4t_release"].startswith("R36 (release), REVISION: 4.0")


def test_efi_variables_that_are_cut_or_odd_are_passed_over(tmp_path):
    folder = tmp_path / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True)
    inactive = struct.pack("<IIH", 7, 0, 4) + "Off".encode("utf-16-le") + b"\0\0" + b"\x7f\xff\x04\0"
    for name, data in {
        "Boot0007-8be4": inactive,
        "Boot0008-8be4": b"\7\0\0\0\1",
        "BootCurrent-8be4": b"\7\0\0\0\7\0",
        "Timeout-8be4": b"",
    }.items():
        (folder / name).write_bytes(data)

    told = facts(str(write(tmp_path / "drive")), str(tmp_path))

    assert told["efi_entries"] == [f"Boot0007 Off [{inactive[4:].hex()}]"]


def write(path: Path, size: int = 4096) -> Path:
    path.write_bytes(b"x" * size)
    return path


def test_a_plain_file_has_a_size_and_nothing_else(tmp_path):
    told = facts(str(write(tmp_path / "drive", 5000)), str(tmp_path / "no root"))

    assert told.pop("writes")
    assert told.pop("size_bytes") == 5000
    assert told.pop("in_use") is False
    assert set(map(repr, told.values())) == {"''", "[]"}
    assert facts(str(tmp_path / "drive"), "/")["mounts"] == []


@pytest.mark.parametrize("data", [b"\7\0\0\0\1", b""], ids=["odd", "empty"])
def test_a_boot_order_that_is_cut_is_passed_over(tmp_path, data):
    folder = tmp_path / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True)
    (folder / "BootOrder-8be4").write_bytes(data)

    assert len(facts(str(write(tmp_path / "drive")), str(tmp_path))["efi_entries"]) <= 1
