"""A library of images, files in the place of drives, and the lab's two Jetsons."""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest

from akidb_pipelines.images.capture import Captured, CaptureRequest, capture
from akidb_pipelines.images.drives import BLOCK_BYTES, Drive, LocalDrive
from akidb_pipelines.images.image import Image
from akidb_pipelines.images.library import Library, open_library
from akidb_pipelines.images.reflash import Reflash
from akidb_pipelines.images.remote import RemoteDrive
from akidb_pipelines.images.studio import device_drive, device_request
from akidb_pipelines.lab import loops
from akidb_pipelines.lab.loops import Loop
from akidb_pipelines.lab.processes import Process
from akidb_pipelines.machines.ssh import Connection, renew_certificate
from akidb_pipelines.periods import Month
from tests.services.jetson_lab import LabForTests
from tests.services.places import place_of, use

MIB = 1 << 20
NOVEMBER, DECEMBER = "2026-11", "2026-12"


@pytest.fixture
def library(tmp_path) -> Library:
    """In a folder."""
    return library_in(tmp_path)


@pytest.fixture(params=["local", "s3"])
def any_library(request, tmp_path, monkeypatch) -> Library:
    """In a folder, then on a real S3 server."""
    place = place_of(request.param, request, tmp_path)
    use(place, monkeypatch)
    library = open_library(place.settings(tmp_path / "home"))
    library.publisher.init()
    return library


def library_in(folder: Path) -> Library:
    """Everything of a library, keys too, below one folder."""
    from akidb_pipelines.settings import Settings

    return open_library(Settings(home=folder / "home", store=f"file://{folder / 'store'}"))


# --- files in the place of drives


def write_drive(path: Path, seed: int = 1, *, data_mib: int = 4, tail: bytes = b"") -> Path:
    """A sparse file: a hole, incompressible and compressible blocks, zeros, a hole of a whole segment, and a tail."""
    draw = random.Random(seed)
    with path.open("wb") as out:
        out.seek(MIB)
        for n in range(data_mib * MIB // BLOCK_BYTES):
            out.write(draw.randbytes(BLOCK_BYTES) if n % 3 else draw.randbytes(64) * (BLOCK_BYTES // 64))
        out.write(bytes(MIB))
        out.truncate((data_mib + 10) * MIB)
        out.seek(0, 2)
        out.write(tail)
    return path


def change(path: Path, *numbers: int, seed: int = 7) -> None:
    """Write other bytes into some blocks of a file or drive, and have them on the medium."""
    draw = random.Random(seed)
    with path.open("r+b") as out:
        for number in numbers:
            out.seek(number * BLOCK_BYTES)
            out.write(draw.randbytes(BLOCK_BYTES))
        out.flush()
        os.fsync(out.fileno())


def taken(library: Library, drive: Drive | Path, period: str = NOVEMBER, name: str = "disk", **more: Any) -> Captured:
    """Capture a drive, or a file in the place of one."""
    opened = LocalDrive(drive) if isinstance(drive, Path) else drive
    with closing(opened):
        return capture(library, opened, CaptureRequest(name, Month.parse(period), **more))


def stored(library: Library, suffix: str) -> list[str]:
    """Keys of the packs, or of their indexes, in the order of their names."""
    return sorted(info.key for info in library.blocks.store.list("images/packs/") if info.key.endswith(suffix))


def damage(library: Library, key: str, at: int = 100) -> None:
    """Flip a byte of an object of a library in a folder."""
    path = library.blocks.store.root / key  # type: ignore[attr-defined]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


# --- the lab's devices


@dataclass(frozen=True)
class Devices:
    """The Jetsons of the lab, as the engine reaches them and as this machine sees them."""

    running: LabForTests
    opened: list[RemoteDrive] = field(default_factory=list)
    """Closed when the test has ended."""

    def drive(self, name: str, **of_host: Any) -> RemoteDrive:
        """A device's drive over SSH; anything of its host may be told otherwise."""
        inventory = self.running.inventory
        device = inventory.device(name)
        self.opened.append(device_drive(inventory, replace(device, host=replace(device.host, **of_host))))
        return self.opened[-1]

    def inventory_in(self, folder: Path) -> Path:
        """The inventory, for whoever has another AKIDB_HOME."""
        path = folder / "inventory.yaml"
        text = self.running.inventory_path.read_text()
        path.write_text(re.sub(r"\{\{ lookup\('+env'+, '+AKIDB_HOME'+\) \}\}", str(self.running.home), text))
        return path

    def request(self, name: str, period: str = NOVEMBER, **more: Any) -> CaptureRequest:
        """How the inventory says that it is captured."""
        return replace(device_request(self.running.inventory.device(name), name, Month.parse(period)), **more)

    def capture(
        self, library: Library, name: str, period: str = NOVEMBER, report: Callable = lambda _: None, **more: Any
    ) -> Captured:
        """Capture it over SSH."""
        with closing(self.drive(name)) as drive:
            return capture(library, drive, self.request(name, period, **more), report)

    def reflash(self, name: str, image: Image, confirmed_serial: str = "", drive: Drive | None = None) -> Reflash:
        """How the inventory says that it is reflashed."""
        serial = self.running.inventory.device(name).serial
        return Reflash(name, drive or self.drive(name), image, serial, confirmed_serial)

    def loop(self, name: str) -> Path:
        """Its drive, as this machine sees it."""
        return self.running.lab.drive(name)

    def content(self, name: str) -> bytes:
        """All of its drive, as it is on the medium."""
        subprocess.run(["blockdev", "--flushbufs", self.loop(name)], check=True)
        return self.loop(name).read_bytes()

    def start(self, name: str, script: str) -> subprocess.Popen[str]:
        """Start a shell script on the device."""
        hosts = self.running.inventory.hosts
        renew_certificate(hosts[name])
        config = self.running.home / "ssh_config"
        config.write_text(Connection(hosts[name], hosts).config())
        return subprocess.Popen(
            ["ssh", "-F", config, name, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, name: str, script: str) -> str:
        """Run a shell script on the device; returns what it said."""
        with self.start(name, script) as process:
            told, _ = process.communicate(timeout=30)
        assert process.returncode == 0, told
        return told

    def stop_sshd(self, name: str) -> None:
        """Stop a host's sshd; the fixture brings it up again."""
        process = Process.load(self.running.lab.folder / name / "state.json")
        assert process
        process.stop()

    @contextmanager
    def mounted(self, name: str, folder: Path, *options: str) -> Iterator[Path]:
        """The root file system of an unmounted device's drive, mounted on this machine."""
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", *options, f"{self.loop(name)}p1", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)

    def thaw(self) -> None:
        """Whatever a test did, nothing stays frozen."""
        for name in ("jetson-a", "jetson-b"):
            loops.thaw(Loop(self.loop(name), Path()))


@pytest.fixture
def devices(jetson_lab) -> Iterator[Devices]:
    """The lab's Jetsons, up and thawed whatever the test before did."""
    found = Devices(jetson_lab)
    jetson_lab.lab.up()
    try:
        yield found
    finally:
        for drive in found.opened:
            drive.close()
        found.thaw()
        jetson_lab.lab.up()


WRITER = """
import os, sys
folder = "/srv/writer"
os.makedirs(folder, exist_ok=True)
n = 0
while True:
    n += 1
    with open(f"{folder}/{n % 40}", "wb") as out:
        out.write(os.urandom(50000))
        out.flush()
        os.fsync(out.fileno())
    if n % 7 == 0:
        os.unlink(f"{folder}/{n % 40}")
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


class Writer:
    """A program on a device that keeps writing files to its root, and says each time when one is on the medium."""

    def __init__(self, devices: Devices, name: str = "jetson-b") -> None:
        self._process = devices.start(name, f"exec python3 -c {shlex.quote(WRITER)}")
        self._seen = 0
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        self.expect_progress()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._seen = int(line)

    def progress(self, seconds: float) -> bool:
        """Whether it writes anything that it has not begun yet, within so many seconds."""
        before, end = self._seen, monotonic() + seconds
        while monotonic() < end:
            if self._seen > before + 2:
                return True
            sleep(0.01)
        return False

    def expect_progress(self, seconds: float = 10) -> None:
        """Wait until it has written something."""
        assert self.progress(seconds), "the device does not write"

    def stop(self) -> None:
        """End it: it notices when nobody reads what it says."""
        self._process.kill()
        self._reader.join(10)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            stream.close()


@contextmanager
def writing(devices: Devices) -> Iterator[Writer]:
    """While a program on jetson-b writes."""
    writer = Writer(devices)
    try:
        yield writer
    finally:
        writer.stop()
