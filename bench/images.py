"""Images of a drive: captures, restores and reflashes of 4 GiB against zstd, restic, dd and plain reading; over SSH; and of 8 GiB."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from bench.measure import Line, Took, measure

_GIB = 1 << 30
_SIZE, _USED = 4 * _GIB, 2.6 * _GIB
_PAGE, _CHUNK = 4096, 4 << 20
_ROUNDS = 3

_SETUP = """
import os, subprocess
from pathlib import Path
from akidb_pipelines.images.capture import CaptureRequest, capture
from akidb_pipelines.images.drives import LocalDrive
from akidb_pipelines.machines.inventory import Host
from akidb_pipelines.images.library import open_library
from akidb_pipelines.images.reflash import Reflash, plan, reflash
from akidb_pipelines.images.remote import RemoteDrive
from akidb_pipelines.images.restore import restore
from akidb_pipelines.machines.ssh import Connection
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
import akidb_pipelines.store.trust, tuf.api.metadata, tuf.ngclient, securesystemslib.signer
folder = Path({folder!r})
os.chdir(folder)
os.environ.update(RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=str(folder / "restic-cache"))
def library(home):
    return open_library(Settings(home=folder / home, store=f"file://{{folder / home}}/store"))
def captured(home, drive, month):
    return capture(library(home), drive, CaptureRequest("disk", Month.parse(f"2026-{{month}}"))).counts.sent_bytes
os.sync()  # what an earlier run has left to be written is not to slow this one
"""

_CAPTURE = "value = captured({home!r}, LocalDrive(folder / {image!r}), {month})"
_RESTORE = "restore(library({home!r}), image, folder / 'restored.img')"
_FIND = "image = library({home!r}).find('disk/2026-11')"
_ZSTD = "subprocess.run(['zstd', '-3', '-T2', '-q', {image!r}, '-o', 'image.zst'], check=True)"
_UNZSTD = "subprocess.run('zstd -dcq image.zst | dd bs=4M status=none of=restored.img', shell=True, check=True)"
_RESTIC_NEW = "subprocess.run(['restic', '-r', {repository!r}, 'init', '--quiet'], check=True)\n"
_RESTIC = "subprocess.run(['restic', '-r', {repository!r}, 'backup', '--quiet', {image!r}], check=True)"

_PREVIOUS = """
library_ = library({home!r})
previous = library_.digests(library_.find("disk/2026-11"))
drive = LocalDrive(folder / {image!r})
"""
_SCAN = "value = sum(len(found.data) for scanned in drive.scan(previous) for found in scanned.found)"
# Into one buffer again and again, as dd does it; the holes left out, as a scan does.
_READ = """
import mmap
buffer, at = mmap.mmap(-1, 4 << 20), 0
descriptor = os.open({image!r}, os.O_RDONLY)
while True:
    try:
        start = os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(descriptor, start, os.SEEK_HOLE)
    while start < at:
        start += os.preadv(descriptor, [memoryview(buffer)[: at - start]], start)
"""

_COLD = """
descriptor = os.open({image!r}, os.O_RDONLY)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
os.close(descriptor)
"""

_REFLASH = """
found = library({home!r})
what = Reflash("disk", LocalDrive(folder / "drifted.img"), found.find("disk/2026-12"))
"""

_SSH = """
host = Host("bench", "127.0.0.1", {port}, {user!r}, "key", "known_hosts", python={python!r})
drive = RemoteDrive(Connection(host), {drive!r})
value = captured({home!r}, drive, 12)
drive.close()
"""


def lines(work: Path) -> Iterator[Line]:
    """Run the comparisons; `work` needs room for some 30 GiB."""
    folder = work.resolve() / "images"
    folder.mkdir()
    images = _Images(folder)
    images.make()
    setup = _SETUP.format(folder=str(folder))
    rounds = _Rounds(folder, setup)
    for n in range(_ROUNDS):
        rounds.run(n)
    yield from rounds.lines()
    yield from _reflashed(folder, setup)
    yield from _over_ssh(folder, setup)
    yield from _doubled(images, setup, rounds)
    shutil.rmtree(folder)


# --- the rounds


class _Rounds:
    """Ours and the others in turn, so that a machine that slows down slows all; each month 1 in a store of its own."""

    def __init__(self, folder: Path, setup: str) -> None:
        self._folder, self._setup = folder, setup
        self.taken: dict[str, list[Took]] = {}
        self._grown: dict[str, int] = {}
        self._has = {tool: shutil.which(tool) is not None for tool in ("zstd", "restic")}

    def run(self, n: int) -> None:
        """Both months, captured, read and restored. The last round's store is left, with a copy of what it was after month 1."""
        home, repository = f"home-{n}", f"restic-{n}"
        whole = _FIND.format(home=home)
        if self._has["zstd"]:
            (self._folder / "image.zst").unlink(missing_ok=True)
            self._take("zstd 1", _ZSTD.format(image="month1.img"))
        self._take("ours 1", _CAPTURE.format(home=home, image="month1.img", month=11))
        if self._has["restic"]:
            told = {"repository": repository, "image": "month1.img"}
            self._take("restic 1", (_RESTIC_NEW + _RESTIC).format(**told))
        before = {name: _stored(self._folder / name) for name in (home, repository)}
        if n == _ROUNDS - 1:
            shutil.copytree(self._folder / home, self._folder / "kept")
        self._take("ours 2", _CAPTURE.format(home=home, image="month2.img", month=12))
        if self._has["restic"]:
            self._take("restic 2", _RESTIC.format(repository=repository, image="month2.img"))
        self._grown = {who: _stored(self._folder / name) - before[name] for who, name in (("ours", home), ("restic", repository))}
        previous, cold = _PREVIOUS.format(home=home, image="month2.img"), _COLD.format(image="month2.img")
        self._take("read", _READ.format(image="month2.img"))
        self._take("scan", _SCAN, previous)
        self._take("cold read", _READ.format(image="month2.img"), cold)
        self._take("cold scan", _SCAN, previous + cold)
        if self._has["zstd"]:
            self._take("zstd back", _UNZSTD)
            (self._folder / "restored.img").unlink()
        self._take("ours back", _RESTORE.format(home=home), whole)
        (self._folder / "restored.img").unlink()
        shutil.rmtree(self._folder / repository, ignore_errors=True)
        if n < _ROUNDS - 1:
            shutil.rmtree(self._folder / home)

    def _take(self, what: str, work: str, setup: str = "") -> None:
        self.taken.setdefault(what, []).append(measure(work, self._setup + setup))

    def seconds(self, what: str) -> float:
        """The median of the rounds; 0 where a tool is missing."""
        return median(took.wall_s for took in self.taken[what]) if what in self.taken else 0.0

    def lines(self) -> Iterator[Line]:
        """What came out."""
        yield self._slower("capture, month 1 / zstd -3 -T2 of the image", "ours 1", "zstd 1", 1.0)
        yield self._faster("capture, month 1: faster than restic", "ours 1", "restic 1", 2.5)
        yield self._faster("capture, month 2: faster than restic", "ours 2", "restic 2", 5)
        if self._has["restic"]:
            ours, other = self._grown["ours"], self._grown["restic"]
            told = f"{ours / 1e6:.0f} MB against {other / 1e6:.0f} MB"
            yield Line("stored for month 2 / what restic stores", f"{ours / other:.2f}x", "<= 0.6x", ours / other <= 0.6, told)
        else:
            yield Line("stored for month 2 / what restic stores", "not installed", "<= 0.6x", None)
        yield self._slower("scan, month 2 / reading it in 4 MiB pieces", "cold scan", "cold read", 2.0, "from the disk")
        # From memory it is the speed of SHA-256 against that of memory: two cores cannot get below 2.1x.
        cached = self._slower("the same, from the page cache", "scan", "read", 2.0)
        yield Line(cached.what, cached.measured, "", None, cached.detail)
        yield self._slower("restore to a file / zstd -d | dd bs=4M", "ours back", "zstd back", 1.2)
        memory = {what: max(took.rss_mb for took in self.taken[f"ours {what}"]) for what in ("1", "2", "back")}
        most = max(memory.values())
        told = f"month 1 {memory['1']:.0f} MB, month 2 {memory['2']:.0f} MB, restore {memory['back']:.0f} MB"
        yield Line("memory of captures and a restore", f"{most:.0f} MB", "<= 150 MB", most <= 150, told)

    def _slower(self, what: str, ours: str, other: str, goal: float, note: str = "") -> Line:
        if other not in self.taken:
            return Line(what, "not installed", f"<= {goal}x", None)
        ratio = self.seconds(ours) / self.seconds(other)
        return Line(what, f"{ratio:.2f}x", f"<= {goal}x", ratio <= goal, "; ".join(filter(None, (self._told(ours, other), note))))

    def _faster(self, what: str, ours: str, other: str, goal: float) -> Line:
        if other not in self.taken:
            return Line(what, "not installed", f">= {goal}x", None)
        ratio = self.seconds(other) / self.seconds(ours)
        return Line(what, f"{ratio:.1f}x", f">= {goal}x", ratio >= goal, self._told(ours, other))

    def _told(self, ours: str, other: str) -> str:
        return f"{self.seconds(ours):.2f} s against {self.seconds(other):.2f} s, medians of {_ROUNDS}"


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


# --- single runs


def _reflashed(folder: Path, setup: str) -> Iterator[Line]:
    """A drive that holds month 1 gets month 2: the last round's store has both."""
    home = f"home-{_ROUNDS - 1}"
    _copy(folder / "month1.img", folder / "drifted.img")
    differs = measure(_SCAN, setup + _PREVIOUS.format(home=home, image="month2.img")).value
    work = "done = reflash(found, what)\nvalue = [done.ok, done.written_bytes, done.zeroed_bytes]"
    took = measure(work, setup + _REFLASH.format(home=home))
    sound, written, zeroed = took.value
    same = sound and subprocess.run(["cmp", "-s", folder / "drifted.img", folder / "month2.img"], check=False).returncode == 0
    told = f"{written / 1e6:.0f} MB of {_SIZE / 1e6:.0f} MB in {took.wall_s:.1f} s, {zeroed / 1e6:.0f} MB zeroed"
    ratio = written / differs
    yield Line("reflash, month 1 to 2: written / what differs", f"{ratio:.3f}x", "<= 1.05x", bool(same and ratio <= 1.05), told)
    (folder / "drifted.img").unlink()


def _over_ssh(folder: Path, setup: str) -> Iterator[Line]:
    """Month 2 through a real SSH server, into a store that has month 1."""
    what, goal = "month 2 over SSH: moved / blocks that differ", "<= 1.1x"
    if not Path(_SSHD).exists():
        yield Line(what, "not installed", goal, None)
        return
    home = f"home-{_ROUNDS - 1}"
    shutil.rmtree(folder / home)
    (folder / "kept").rename(folder / home)  # the keys of a store's registry are found by its path
    differs = measure(_SCAN, setup + _PREVIOUS.format(home=home, image="month2.img")).value
    with _ssh_server(folder) as port:
        told = {"user": getpass.getuser(), "python": shutil.which("python3"), "drive": str(folder / "month2.img")}
        took = measure(_SSH.format(port=port, home=home, **told), setup)
    ratio = max(0, took.value - 3 * (1 << 20)) / differs
    detail = f"{took.value / 1e6:.0f} MB for {differs / 1e6:.0f} MB; 3 MiB for digests and the agent not counted"
    yield Line(what, f"{ratio:.2f}x", goal, ratio <= 1.1, detail)
    yield Line("month 2 over SSH", f"{took.wall_s:.1f} s", "", None, f"127.0.0.1, 1 run; memory {took.rss_mb:.0f} MB")


def _doubled(images: _Images, setup: str, rounds: _Rounds) -> Iterator[Line]:
    """Month 1 of twice the drive."""
    images.double()
    took = measure(_CAPTURE.format(home="home-double", image="double.img", month=11), setup)
    once, memory = rounds.seconds("ours 1"), max(t.rss_mb for t in rounds.taken["ours 1"])
    longer, larger = took.wall_s / once, took.rss_mb / memory
    told = f"{took.wall_s:.1f} s (1 run) against {once:.1f} s"
    yield Line("capture of 8 GiB / of 4 GiB: seconds", f"{longer:.2f}x", "<= 2.2x", longer <= 2.2, told)
    told = f"{took.rss_mb:.0f} MB against {memory:.0f} MB"
    yield Line("capture of 8 GiB / of 4 GiB: memory", f"{larger:.2f}x", "<= 1.15x", larger <= 1.15, told)


_SSHD = "/usr/sbin/sshd"


@contextmanager
def _ssh_server(folder: Path) -> Iterator[int]:
    """An SSH server of our own on a high port of the loopback address, with keys that live as long as it."""
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([_SSHD, "-D", "-f", config, "-E", folder / "sshd.log"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


# --- the images


class _Images:
    """The drive's two months, always with the same content.

    Month 1 is an ext4 file system, 2.6 of 4 GiB used, of files from 4 KiB to 64 MiB: half the bytes are text, three tenths tables of
    records, a fifth cannot be compressed (media, archives). zstd -3 makes about a third of it.

    Month 2 is made on the bytes of that image, in pieces of 4 KiB, as if files had been written: 5 % of what is used has other content, 2 %
    was deleted and trimmed, 1 % was added where nothing was. The sizes of these pieces are spread as those of the files, up to 8 MiB.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._random = np.random.default_rng(2025)
        self._content = Content(self._random)

    def make(self) -> None:
        """Both months."""
        month1, month2 = self._folder / "month1.img", self._folder / "month2.img"
        self._month1(month1)
        _copy(month1, month2)
        used, free = _extents(month2)
        with month2.open("r+b") as image:
            self._write(image.fileno(), used, 0.05)
            self._write(image.fileno(), used, 0.02, delete=True)
            self._write(image.fileno(), free, 0.01)

    def double(self) -> None:
        """An image of twice the size: month 1, and behind it the same with every bit turned."""
        month1, double = self._folder / "month1.img", self._folder / "double.img"
        _copy(month1, double)
        with month1.open("rb") as source, double.open("r+b") as out:
            out.truncate(2 * _SIZE)
            for start, end in _extents(month1)[0]:
                for at in range(start, end, _CHUNK):
                    data = os.pread(source.fileno(), min(_CHUNK, end - at), at)
                    os.pwrite(out.fileno(), np.bitwise_not(np.frombuffer(data, np.uint8)).tobytes(), _SIZE + at)

    def _month1(self, path: Path) -> None:
        if not shutil.which("mkfs.ext4"):
            self._laid_out(path)
            return
        tree = self._folder / "tree"
        for n, data in enumerate(self._files()):
            folder = tree / f"{n // 100}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{n}").write_bytes(data)
        command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(tree), str(path), f"{_SIZE >> 10}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(tree)

    def _laid_out(self, path: Path) -> None:
        """Without mkfs: the same files, one behind the other as a file system lays them out, in blocks of 4 KiB."""
        with path.open("wb") as image:
            for data in self._files():
                image.write(data.ljust(-(-len(data) // _PAGE) * _PAGE, b"\0"))
            image.truncate(_SIZE)

    def _files(self) -> Iterator[bytes]:
        left = int(_USED)
        while left > 0:
            size = min(self._size(64 << 20), left)
            left -= -(-size // _PAGE) * _PAGE
            yield self._content.of(size)

    def _size(self, most: int) -> int:
        """Of a file: half of all are below 16 KiB, while most bytes are in the few large ones."""
        return int(_PAGE / max(self._random.random(), (_PAGE / most) ** 0.5) ** 2)

    def _write(self, image: int, extents: list[tuple[int, int]], share: float, *, delete: bool = False) -> None:
        left = int(share * _USED)
        starts = np.array([start for start, _ in extents])
        before = np.cumsum([0, *(end - start for start, end in extents)])
        while left > 0:
            at = int(self._random.integers(before[-1] // _PAGE)) * _PAGE
            n = int(np.searchsorted(before, at, "right")) - 1
            start = int(starts[n]) + at - int(before[n])
            size = min(-(-self._size(8 << 20) // _PAGE) * _PAGE, left + _PAGE, extents[n][1] - start)
            os.pwrite(image, bytes(size) if delete else self._content.of(size), start)
            left -= size


_Kind = Callable[[int], bytes]


class Content:
    """Content of files, of three kinds; each kind keeps its share of all bytes."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._kinds: dict[_Kind, float] = {self._text: 0.5, self._records: 0.3, random.bytes: 0.2}
        self._made = dict.fromkeys(self._kinds, 0)
        letters = np.frombuffer(b"etaoinshrdlcumwfgypbvk", np.uint8)
        words = [letters[(len(letters) * random.random(n) ** 1.5).astype(int)].tobytes() for n in random.integers(2, 11, 5000)]
        text = b" ".join(words[n] for n in (len(words) * random.random(200_000) ** 3).astype(int).tolist())
        # Common phrases stand in the table more often, so that any 16 bits name one.
        starts = random.integers(0, len(text) - 24, 32768)[(32768 * random.random(1 << 16) ** 3).astype(int)].tolist()
        self._phrases = np.frombuffer(b"".join(text[start : start + 24] for start in starts), "V24")

    def of(self, size: int) -> bytes:
        """Some bytes that nobody has had before."""
        kind = min(self._kinds, key=lambda k: self._made[k] / self._kinds[k])
        self._made[kind] += size
        return kind(size)

    def _text(self, size: int) -> bytes:
        chosen = np.frombuffer(self._random.bytes(size // 24 * 2 + 2), "<u2")
        return bytes(self._phrases[chosen].tobytes()[:size])

    def _records(self, size: int) -> bytes:
        fields = [("id", "<u8"), ("kind", "<u2"), ("flags", "<u2"), ("size", "<u4"), ("sum", "u1"), ("more", "V15")]
        rows = np.zeros(size // 32 + 1, fields)
        drawn = np.frombuffer(self._random.bytes(len(rows) * 4), "<u2").reshape(2, -1)
        rows["id"] = np.arange(len(rows)) + self._random.integers(2**40)
        rows["kind"], rows["size"], rows["sum"] = drawn[0] % 12, drawn[0] // 16 * 8, drawn[1] % 256
        return rows.tobytes()[:size]


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def _extents(path: Path) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What of a file holds data, and its holes, as (start, end)."""
    used: list[tuple[int, int]] = []
    with path.open("rb") as file:
        at = 0
        while at < _SIZE:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # no more data
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            used.append((start, at))
    ends, starts = [0, *(end for _, end in used)], [*(start for start, _ in used), _SIZE]
    return used, [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]
