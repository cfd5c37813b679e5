"""A Docker engine and a base image of its own on this machine, for building runner images without a registry.

    <folder>                         the engine's, see `engine`
    <cache>/lab-base-bookworm.tar    Debian, made once by debootstrap

As root; others set `akidb_runner_docker_host` to an engine that they may use.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.images.runners.engine import Engine
from akidb_pipelines.lab.engine import LabEngine
from akidb_pipelines.lab.programs import run
from akidb_pipelines.progress import Progress, Report

BASE = "akidb/lab-base:bookworm"
SUITE = "bookworm"
_PACKAGES = "python3,ca-certificates"


def _silent(told: Progress) -> None:
    del told


@dataclass(frozen=True)
class RunnerLab:
    """The lab below one folder.

    Args:
        folder: it.
        cache: keeps the base image between labs.
    """

    folder: Path
    cache: Path

    @property
    def url(self) -> str:
        """Of the engine."""
        return self._engine.url

    def up(self, report: Report = _silent) -> None:
        """Start the engine if it does not run, and make the base image if it has none.

        Raises:
            OutsideError: a program, a right or room is missing.
        """
        self.start(report)
        engine = Engine(self.url)
        try:
            if not engine.image_id(BASE):
                self._import_base(report)
        finally:
            engine.close()
        report(Progress("lab: up"))

    def start(self, report: Report = _silent) -> None:
        """Start the engine if it does not run. See up."""
        self._engine.start(report)

    def down(self) -> None:
        """Stop the engine with its containers, and remove all it had.

        Raises:
            OutsideError: something does not end.
        """
        self._engine.down()

    def running(self) -> bool:
        """Whether the engine answers."""
        return self._engine.running()

    @property
    def _engine(self) -> LabEngine:
        return LabEngine(self.folder, "set akidb_runner_docker_host to an engine that you may use")

    def _import_base(self, report: Report) -> None:
        archive = self.cache / f"lab-base-{SUITE}.tar"
        if not archive.exists():
            report(Progress("lab: making Debian by debootstrap (a minute)"))
            self._bootstrap(archive)
        report(Progress("lab: importing the base image"))
        run("docker", "--host", self.url, "import", str(archive), BASE)

    def _bootstrap(self, archive: Path) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        root, part = self.folder / "base", archive.with_suffix(".part")
        shutil.rmtree(root, ignore_errors=True)
        try:
            run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root))
            run("tar", "--create", f"--file={part}", f"--directory={root}", "--exclude=./var/cache/apt/archives/*.deb", ".")
            part.replace(archive)
        finally:
            shutil.rmtree(root, ignore_errors=True)
            part.unlink(missing_ok=True)
