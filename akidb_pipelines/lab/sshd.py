"""The lab's sshd processes, their keys, and a user CA whose certificates last ten minutes.

Each listens on 127.0.0.1, lets in one user, and is known by its pinned host key. sshd_config(5) and ssh-keygen(1) are the references.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.files import write_whole
from akidb_pipelines.lab import namespace, processes, programs
from akidb_pipelines.lab.loops import Loop, thaw
from akidb_pipelines.lab.processes import Process
from akidb_pipelines.machines.inventory import Host

ADDRESS = "127.0.0.1"
STATE_FILE = "state.json"
_START_SECONDS = 20.0
_UNMOUNT_SECONDS = 10.0


@dataclass(frozen=True)
class Keys:
    """Who may come in: a user key, and a CA that signs it."""

    folder: Path

    @property
    def operator(self) -> Path:
        """The user's private key."""
        return self.folder / "operator"

    @property
    def ca(self) -> Path:
        """The CA's private key."""
        return self.folder / "ca"

    def make(self, users: Iterable[str], sign_script: Path) -> None:
        """Make what is missing.

        Args:
            users: the names that certificates are for.
            sign_script: where to put the program that signs a new certificate, `operator-cert.pub` beside the key.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for key in (self.operator, self.ca):
            _make_key(key, f"lab {key.name}")
        script = _SIGN.format(keys=self.folder.name, users=shlex.quote(",".join(sorted(users))))
        write_whole(sign_script, script.encode(), mode=0o755)


# The certificate is renamed into place: another ssh may read it at the same time.
_SIGN = """\
#!/bin/sh
# Signs the operator's key for ten minutes, in the place of an organisation's certificate authority.
set -eu
cd "$(dirname "$0")/{keys}"
work=$(mktemp -d .sign-XXXXXX)
trap 'rm -rf "$work"' EXIT
cp operator.pub "$work/"
ssh-keygen -q -s ca -I lab -n {users} -V -1m:+10m "$work/operator.pub"
mv "$work/operator-cert.pub" operator-cert.pub
"""


@dataclass(frozen=True)
class Sshd:
    """One sshd, of one host of the inventory."""

    folder: Path
    """Its own; on the drive's machine, not on the drive."""
    host: Host
    trusted: Path
    """Public key of the user, or of the CA if `by_certificate`."""
    by_certificate: bool = False
    forwards: bool = False
    """Whether connections to other hosts may go through it."""
    root: Loop | None = None
    """The drive that is its root file system."""
    drive: str = ""
    """Path of that drive inside."""

    def host_key(self) -> str:
        """Its public host key, without comment; made if it is missing."""
        self._files.mkdir(parents=True, exist_ok=True)
        _make_key(self._files / "host_key", self.host.name)
        return " ".join((self._files / "host_key.pub").read_text().split()[:2])

    def known_hosts_line(self) -> str:
        """The line that pins it."""
        name = self.host.address if self.host.port == 22 else f"[{self.host.address}]:{self.host.port}"
        return f"{name} {self.host_key()}\n"

    def running(self) -> bool:
        """Whether the process that `up` started is there."""
        process = Process.load(self._state)
        return process is not None and process.alive()

    def up(self) -> None:
        """Start it, or keep it if it runs with the same configuration; returns when it answers.

        Raises:
            OutsideError: the port is taken, or it did not start; the message ends with its log.
        """
        self.host_key()
        wanted = {self._files / "sshd_config": self._config().encode(), self._files / "trusted.pub": self.trusted.read_bytes()}
        if self.running() and all(path.is_file() and path.read_bytes() == content for path, content in wanted.items()):
            return
        self.stop()
        for path, content in wanted.items():
            write_whole(path, content)
        self._start()

    def stop(self) -> None:
        """End it with all its sessions, and wait until the drive that was its root is unmounted. Does nothing if it does not run.

        Raises:
            OutsideError: it does not end.
        """
        if self.root:
            thaw(self.root)  # what waits for a frozen file system cannot be killed, and the file system would outlive its mount
        if process := Process.load(self._state):
            process.stop()
        self._state.unlink(missing_ok=True)
        end = time.monotonic() + _UNMOUNT_SECONDS
        while self.root and self.root.claimed:
            if time.monotonic() > end:
                raise OutsideError(
                    f"{self.host.name}: its sshd has ended, but {self.root.device} is still mounted",
                    hint=f"unmount it: findmnt -S {self.root.device}p1",
                )
            time.sleep(0.01)

    def _start(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError), socket.create_connection((ADDRESS, self.host.port), timeout=2):
            raise OutsideError(
                f"{self.host.name}: something else listens on {ADDRESS}:{self.host.port}",
                hint="end it, or give the host another ansible_port in the inventory",
            )
        log = self.folder / "sshd.log"
        before = log.stat().st_size if log.exists() else 0
        process = processes.start(self._command(), log, {"PATH": programs.SEARCH_PATH, "LC_ALL": "C"})
        process.save(self._state)
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if process.alive() and time.monotonic() < end:
                time.sleep(0.01)
                continue
            self.stop()
            told = log.read_bytes()[before:].decode(errors="replace").splitlines()[-10:]
            raise OutsideError(
                f"{self.host.name}: sshd did not start on port {self.host.port}; its log ends with:\n" + "\n".join(told)
            )

    def _command(self) -> list[str]:
        # In / the process keeps no folder of the caller busy.
        elsewhere = [programs.find("env"), "--chdir=/"]
        if self.root is None:
            if os.geteuid() == 0:
                Path("/run/sshd").mkdir(exist_ok=True)  # a package makes it at boot, a container never
            return [*elsewhere, programs.find("sshd"), "-D", "-e", "-f", str(self._files / "sshd_config")]
        mount_point = self.folder / "root"
        mount_point.mkdir(exist_ok=True)
        return [*elsewhere, *namespace.sshd_command(self.root, drive=self.drive, mount_point=mount_point, sshd_folder=self._files)]

    def _config(self) -> str:
        files = namespace.LAB_FOLDER if self.root else str(self._files)
        trusted = f"{files}/trusted.pub"
        percent_is_literal = trusted.replace("%", "%%")
        lines = [
            f"ListenAddress {ADDRESS}",
            f"Port {self.host.port}",
            f'HostKey "{files}/host_key"',
            "PidFile none",
            "LogLevel VERBOSE",
            f"AllowUsers {self.host.user}",
            "PermitRootLogin prohibit-password",
            "AuthenticationMethods publickey",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            f"AuthorizedKeysFile {'none' if self.by_certificate else chr(34) + percent_is_literal + chr(34)}",
            f'TrustedUserCAKeys "{trusted}"' if self.by_certificate else "TrustedUserCAKeys none",
            f"AllowTcpForwarding {'yes' if self.forwards else 'no'}",
            "MaxStartups 100",
            "PrintMotd no",
            "PrintLastLog no",
            # A client that vanished is noticed after 15 seconds.
            "ClientAliveInterval 5",
            "ClientAliveCountMax 3",
        ]
        return "".join(f"{line}\n" for line in lines)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((ADDRESS, self.host.port), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except (ConnectionError, TimeoutError):
            return False

    @property
    def _files(self) -> Path:
        return self.folder / "sshd"

    @property
    def _state(self) -> Path:
        return self.folder / STATE_FILE


def _make_key(path: Path, comment: str) -> None:
    if not (path.is_file() and path.with_name(f"{path.name}.pub").is_file()):
        path.unlink(missing_ok=True)
        programs.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
