"""The two images of the Swarm lab, made of the programs of this machine: no registry is asked, and nothing is fetched.

A node is this machine's own `dockerd` with what it needs to run; the service is the Python that runs us. Each is a tar of the programs, the
shared libraries that `ldd` names, and a few files. Linux only.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab.programs import find

NODE, SERVICE = "akidb/lab-node", "akidb/lab-service"
_NODE_PROGRAMS = (
    *("dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker-init", "docker-proxy", "iptables", "ip6tables"),
    *("sh", "cat", "hostname", "mkdir", "mount", "sed"),
)
_LEFT_OUT = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "tkinter",
    "turtledemo",
}
_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var/lib")
_MERGED = ("bin", "lib", "lib64", "sbin")
"""Links into /usr, as Debian has them."""


@dataclass
class Tree:
    """A file system in the making, as a tar in memory."""

    _out: io.BytesIO = field(default_factory=io.BytesIO)
    _there: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(fileobj=self._out, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by `done`
        for folder in _FOLDERS:
            self._folder(folder)
        for name in _MERGED:
            self.link(name, f"usr/{name}")
        self.link("var/run", "../run")  # in memory: what a killed engine leaves there must not outlive its power
        self.write("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        self.write("etc/group", b"root:x:0:\n")

    def write(self, name: str, data: bytes) -> None:
        """A file."""
        self._tar.addfile(self._member(name, size=len(data)), io.BytesIO(data))

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        member = self._member(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(member)

    def add(self, path: Path) -> None:
        """A file of this machine at its own place, with the links on the way to it."""
        while True:
            place = _place(path)
            if place in self._there:
                return
            if not path.is_symlink():
                with path.open("rb") as source:
                    self._tar.addfile(self._member(place, size=path.stat().st_size, mode=path.stat().st_mode & 0o777), source)
                return
            self.link(place, str(path.readlink()))
            path = Path(os.path.normpath(path.parent / path.readlink()))

    def done(self) -> bytes:
        """The tar."""
        self._tar.close()
        return self._out.getvalue()

    def _member(self, name: str, size: int = 0, mode: int = 0o755) -> tarfile.TarInfo:
        self._there.add(name)
        self._folder(str(Path(name).parent))
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, mode
        return member

    def _folder(self, name: str) -> None:
        if name in self._there or name == ".":
            return
        self._folder(str(Path(name).parent))
        self._there.add(name)
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        self._tar.addfile(member)


def _place(path: Path) -> str:
    """Where a file of this machine lies in an image, whose /bin, /lib, ... are links into /usr."""
    place = str(path).lstrip("/")
    return f"usr/{place}" if place.partition("/")[0] in _MERGED else place


def node_image() -> bytes:
    """A tar of what a node needs.

    Raises:
        OutsideError: a program is not installed.
    """
    tree = Tree()
    programs = [Path(find(name)) for name in _NODE_PROGRAMS]
    plugins = [p for folder in Path("/usr/lib").glob("*/xtables") for p in folder.iterdir()]
    for path in _with_libraries([*programs, *plugins]):
        tree.add(path)
    return tree.done()


def service_image(service: Path) -> bytes:
    """A tar of Python, its standard library and the service, which lies in /service.py.

    Raises:
        OutsideError: this Python cannot be copied.
    """
    tree = Tree()
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    if not library.is_dir():
        raise OutsideError(f"the Swarm lab copies this Python, and {library} is no folder", hint="use another Python")
    modules = [p for p in _files_of(library) if p.suffix in {".py", ".so"}]
    for path in _with_libraries([program, *(p for p in modules if p.suffix == ".so")]):
        tree.add(path)
    for path in modules:
        if path.suffix == ".py":
            tree.add(path)
    if _place(program) != "usr/bin/python3":
        tree.link("usr/bin/python3", str(program))
    tree.write("service.py", service.read_bytes())
    return tree.done()


def image_tag(data: bytes) -> str:
    """What an image is tagged with: its digest, so that a newer one is another one."""
    return hashlib.sha256(data).hexdigest()[:12]


def _files_of(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or path.name.startswith("config-"):
            continue
        if path.is_dir():
            yield from _files_of(path)
        else:
            yield path


def _with_libraries(programs: Iterable[Path]) -> list[Path]:
    """Programs, and the shared libraries that they need."""
    wanted = list(dict.fromkeys(programs))
    told = ""
    for start in range(0, len(wanted), 64):
        command = [find("ldd"), *(str(p) for p in wanted[start : start + 64])]
        told += subprocess.run(command, capture_output=True, text=True, check=False).stdout  # of static ones it says so, and fails
    libraries = {Path(m) for m in re.findall(r"(/\S+) \(0x", told)}
    return [*wanted, *sorted(libraries)]
