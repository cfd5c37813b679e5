"""The Jetson lab: what the inventory describes, on this machine.

Every device of group `jetson` gets a drive and an sshd, every other host an sshd. The inventory decides; this makes it real and puts it
away again. A device with `akidb_lab_mounted` runs from its drive: the drive is the root of its sshd, which needs root. Without root the
other drives are image files and no loop devices.

The folder: `keys/`, `known_hosts`, `sign-certificate`, and one folder a host with `drive.img`, `nvme0n1` (a link to the drive as this
machine sees it), `facts/`, `sshd/`, `sshd.log`, `state.json`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.files import write_whole
from akidb_pipelines.lab import drives, facts, loops, namespace
from akidb_pipelines.lab.loops import Loop
from akidb_pipelines.lab.processes import Process
from akidb_pipelines.lab.sshd import ADDRESS, STATE_FILE, Keys, Sshd
from akidb_pipelines.machines.inventory import Device, Host, Inventory
from akidb_pipelines.progress import Progress, Report

DRIVE_LINK = "nvme0n1"
DEFAULT_SIZE_MIB = 256
_IMAGE = "drive.img"


@dataclass(frozen=True)
class LabHost:
    """A host of the lab, as it is now."""

    name: str
    port: int
    drive: Path | None
    """The loop device, or without root the image file; None for a host without drive, or one that is not made yet."""
    mounted: bool
    """Whether a file system of the drive is mounted anywhere."""
    running: bool
    """Whether its sshd runs."""


def _silent(told: Progress) -> None:
    del told


@dataclass(frozen=True)
class JetsonLab:
    """The lab of one inventory, below one folder."""

    folder: Path
    inventory: Inventory

    def up(self, report: Report = _silent) -> tuple[LabHost, ...]:
        """Make what is missing and start what does not run; what is there and right stays as it is, drives in any case.

        Raises:
            InputError: the inventory describes something that the lab cannot make.
            OutsideError: a program, a right, room or a port is missing.
        """
        for host in self._hosts:
            self._check(host)
        users = {host.user for host in self._hosts}
        self._check_owner()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutsideError(f"lab in {self.folder}: {error}", hint="point AKIDB_HOME at a folder you may write") from error
        self._keys.make(users, self.folder / "sign-certificate")
        possible = [host for host in self._hosts if os.geteuid() == 0 or not self._runs_from_drive(host)]
        for number, host in enumerate(possible):
            report(Progress(f"lab: {host.name}", number, len(possible)))
            if device := self.inventory.devices.get(host.name):
                self._make_drive(device)
        known = "".join(self._sshd(host).known_hosts_line() for host in possible)
        write_whole(self.folder / "known_hosts", known.encode())
        for host in possible:
            self._sshd(host).up()
        report(Progress("lab: up", len(possible), len(possible)))
        return self.status()

    def down(self) -> None:
        """Stop what runs, unmount, free the loop devices, and remove the folder, whatever of it is left.

        Goes by what is on this machine and not by the inventory, which may have changed.

        Raises:
            OutsideError: something does not end, or is used by somebody else.
        """
        self._check_owner()
        attached = list(loops.loops_below(self.folder)) if os.geteuid() == 0 else []
        for loop in attached:
            loops.thaw(loop)
        for state in self.folder.glob(f"*/{STATE_FILE}"):
            if process := Process.load(state):
                process.stop()
            state.unlink()
        for loop in attached:
            loops.detach(loop)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def status(self) -> tuple[LabHost, ...]:
        """All hosts of the inventory, as they are now."""
        return tuple(self._status(host) for host in self._hosts)

    def drive(self, name: str) -> Path:
        """The drive of a device as this machine sees it: its loop device, or without root its image file.

        Raises:
            InputError: there is no such device, or the lab is not up.
        """
        link = self.folder / self.inventory.device(name).name / DRIVE_LINK
        if not link.is_symlink():
            raise InputError(f"the lab in {self.folder} has no drive of {name}", hint="akidb-pipelines lab up jetson")
        return link.parent / link.readlink()

    def _check_owner(self) -> None:
        if self.folder.exists() and os.geteuid() not in (0, owner := self.folder.stat().st_uid):
            raise OutsideError(f"the lab in {self.folder} belongs to user {owner}", hint="run this as that user, or set AKIDB_HOME")

    @property
    def _hosts(self) -> list[Host]:
        """The inventory's hosts, without those that are CI runners."""
        variables = self.inventory.variables
        return [host for host in self.inventory.hosts.values() if "akidb_runner" not in variables[host.name]]

    @property
    def _keys(self) -> Keys:
        return Keys(self.folder / "keys")

    def _check(self, host: Host) -> None:
        """The lab is for hosts on this machine; anything else is a mistake, such as another AKIDB_INVENTORY."""

        def wrong(found: str, hint: str) -> InputError:
            return InputError(f"inventory {self.inventory.source}: {host.name}: {found}", hint=hint)

        if host.address != ADDRESS:
            raise wrong(
                f"is at {host.address}, and the lab makes hosts at {ADDRESS} only", "set AKIDB_INVENTORY to the lab's inventory"
            )
        if not (device := self.inventory.devices.get(host.name)):
            return
        here, told = self.folder / host.name / DRIVE_LINK, Path(device.drive)
        if self._runs_from_drive(host):
            if told.parent != Path("/dev"):
                raise wrong(f"akidb_drive is {told}, and a drive that is a root appears in /dev", "write /dev/nvme0n1")
        elif told.name != here.name or told.parent.resolve() != here.parent.resolve():
            raise wrong(f"akidb_drive is {told}, and the lab makes {here}", "look at AKIDB_HOME and the inventory")
        if self._size_mib(host) < drives.LEAST_MIB:
            raise wrong(f"akidb_lab_size_mib is {self._size_mib(host)}", f"write at least {drives.LEAST_MIB}")

    def _runs_from_drive(self, host: Host) -> bool:
        return bool(self.inventory.variables[host.name].get("akidb_lab_mounted", False))

    def _size_mib(self, host: Host) -> int:
        try:
            return int(self.inventory.variables[host.name].get("akidb_lab_size_mib", DEFAULT_SIZE_MIB))
        except (TypeError, ValueError):
            return 0

    def _make_drive(self, device: Device) -> None:
        folder = self.folder / device.name
        folder.mkdir(exist_ok=True)
        size_mib = self._size_mib(device.host)
        said = facts.board_facts(
            drive_model=f"LAB NVMe {size_mib}MB", drive_serial=device.serial, board_serial=f"1421{_digits(device.name):09}"
        )
        root_files = {**facts.release_files(), **namespace.ACCOUNTS}
        if self._runs_from_drive(device.host):
            root_files |= {f"{device.facts_root.strip('/')}/{path}".lstrip("/"): content for path, content in said.items()}
        else:
            for path, content in said.items():
                target = folder / "facts" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        image, link = folder / _IMAGE, folder / DRIVE_LINK
        if not image.exists():
            drives.make_image(image, name=device.name, size_mib=size_mib, root_files=root_files)
        target = loops.attach(image).device if os.geteuid() == 0 else Path(_IMAGE)
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    def _sshd(self, host: Host) -> Sshd:
        certificates = bool(host.option("CertificateFile"))
        device = self.inventory.devices.get(host.name)
        trusted = self._keys.ca if certificates else self._keys.operator
        return Sshd(
            folder=self.folder / host.name,
            host=host,
            trusted=trusted.with_name(f"{trusted.name}.pub"),
            by_certificate=certificates,
            forwards=device is None,
            root=self._loop(host) if self._runs_from_drive(host) else None,
            drive=device.drive if device else "",
        )

    def _loop(self, host: Host) -> Loop | None:
        return next(loops.loops_below(self.folder / host.name / _IMAGE), None)

    def _status(self, host: Host) -> LabHost:
        loop = self._loop(host)
        link = self.folder / host.name / DRIVE_LINK
        return LabHost(
            name=host.name,
            port=host.port,
            drive=self.drive(host.name) if link.exists() else None,
            mounted=loop is not None and os.geteuid() == 0 and loop.claimed,
            running=self._sshd(host).running(),
        )


def _digits(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 10**9
