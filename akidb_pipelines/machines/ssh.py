"""The way to a device: OpenSSH's own client, told everything by a configuration file that is written for one connection.

Host keys are pinned. A jump host is used when the inventory says so, and is held to its pinned key too. A short-lived certificate is
asked for anew when it has run out. What is said over the connection is the business of `remote`.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from akidb_pipelines.errors import InputError, OutsideError, PipelineError
from akidb_pipelines.machines.inventory import Host

_COMMAND_SECONDS = 120
_PIECE_BYTES = 1 << 20
_URL = re.compile(r"ssh://(?:(?P<user>[^@/]+)@)?(?P<address>[^@:/]+)(?::(?P<port>\d+))?(?P<drive>/.+)")


@dataclass(frozen=True)
class Connection:
    """How a command is run on a host.

    Args:
        host: which.
        others: further hosts of the inventory, for ProxyJump.
    """

    host: Host
    others: Mapping[str, Host] = field(default_factory=dict)

    def run(self, command: Sequence[str]) -> Process:
        """Start a command on the host, its input and output connected to us.

        Raises:
            OutsideError: ssh is not installed, or there is no certificate to be had.
        """
        for host in self._hosts():
            renew_certificate(host)
        folder = tempfile.TemporaryDirectory(prefix="akidb-ssh-")
        config, complaints = Path(folder.name) / "config", Path(folder.name) / "stderr"
        config.write_text(self.config(), encoding="utf-8")
        remote = [*(["sudo", "-n", "--"] if self.host.become else []), *command]
        try:
            with complaints.open("wb") as told:
                process = subprocess.Popen(
                    ["ssh", "-F", str(config), "-T", "--", self.host.name, shlex.join(remote)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=told,
                    bufsize=0,
                )
        except FileNotFoundError as error:
            raise OutsideError("ssh is not installed", hint="apt-get install openssh-client") from error
        return Process(self.host, process, complaints, folder)

    def config(self) -> str:
        """The text of ssh_config(5) for this host, and for those that it jumps through."""
        return "\n".join(_section(host) for host in self._hosts())

    def _hosts(self) -> list[Host]:
        jumps = [jump for jump in self.host.option("ProxyJump").split(",") if jump not in ("", "none")]
        if unknown := [jump for jump in jumps if jump not in self.others]:
            raise InputError(
                f"{self.host.name}: ProxyJump {unknown[0]!r} is no host of the inventory, so its key is not pinned",
                hint="make it a host of the inventory, with its address, user and port there, and name it",
            )
        return [self.host, *(self.others[jump] for jump in jumps)]


def _section(host: Host) -> str:
    """One host. Of most options ssh takes the first value that it reads: no option of the inventory undoes the pinning, or makes it ask."""
    first = {
        "HostName": host.address,
        "Port": host.port,
        "User": host.user,
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
    }
    if host.known_hosts:
        first |= {"UserKnownHostsFile": _quoted(host.known_hosts), "GlobalKnownHostsFile": "/dev/null"}
    if host.key_file:
        first |= {"IdentityFile": _quoted(host.key_file), "IdentitiesOnly": "yes"}
    told = [(name, f'"{value}"' if "/" in value else value) for name, value in host.options]
    last = {
        "ConnectTimeout": 15,
        # A connection that died without a word is noticed within a quarter of a minute.
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "Compression": "no",
        "ControlPath": "none",
    }
    return f"Host {host.name}\n" + "".join(f"  {name} {value}\n" for name, value in (*first.items(), *told, *last.items()))


def _quoted(path: str) -> str:
    return '"' + path.replace("%", "%%") + '"'


def renew_certificate(host: Host) -> None:
    """Have a new certificate made when the one that the inventory names is missing or about to run out.

    Raises:
        OutsideError: the command failed, or left no certificate that is valid.
    """
    certificate = host.option("CertificateFile")
    if not certificate or not host.certificate_command or _is_valid(Path(certificate)):
        return
    tried = f"{host.name}: making an SSH certificate by `{host.certificate_command}`"
    try:
        done = subprocess.run(
            shlex.split(host.certificate_command), capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
        found = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise OutsideError(f"{tried}: {error}", hint="akidb_certificate_command of the inventory must be a program") from error
    if done.returncode or not _is_valid(Path(certificate)):
        raise OutsideError(f"{tried}: {found}", hint=f"run it by hand; it must write {certificate}, and clocks must agree")


def _is_valid(certificate: Path) -> bool:
    """Whether a certificate is good for another minute."""
    if not certificate.is_file():
        return False
    told = subprocess.run(["ssh-keygen", "-L", "-f", str(certificate)], capture_output=True, text=True, check=False).stdout
    if "Valid: forever" in told:
        return True
    match = re.search(r"Valid: from (\S+) to (\S+)", told)
    if not match:
        return False
    # ssh-keygen tells local time, without a zone.
    from datetime import datetime, timedelta

    now = datetime.now()
    return datetime.fromisoformat(match[1]) <= now and now + timedelta(minutes=1) < datetime.fromisoformat(match[2])


class Process:
    """A command that runs on a host, its input and output connected to us. Nothing here waits for ever."""

    def __init__(
        self, host: Host, process: subprocess.Popen[bytes], complaints: Path, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        self.host, self._process, self._complaints, self._folder = host, process, complaints, folder
        assert process.stdin and process.stdout
        self._input, self._output = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._arrived = bytearray()

    def read(self, size: int, patience_s: float) -> bytes:
        """So many bytes of its output.

        Raises:
            TimeoutError: nothing came for so long.
            ConnectionError: it ended.
        """
        while len(self._arrived) < size:
            if not select.select([self._output], [], [], patience_s)[0]:
                raise TimeoutError(f"it said nothing for {patience_s:.0f} s")
            piece = os.read(self._output, _PIECE_BYTES)
            if not piece:
                raise ConnectionError("the connection was lost")
            self._arrived += piece
        data = bytes(self._arrived[:size])
        del self._arrived[:size]
        return data

    def write(self, data: bytes | bytearray, patience_s: float) -> None:
        """Give it input.

        Raises:
            TimeoutError: it took none for so long.
            OSError: it ended.
        """
        view = memoryview(data)
        while view:
            if not select.select([], [self._input], [], patience_s)[1]:
                raise TimeoutError(f"it took nothing for {patience_s:.0f} s")
            view = view[os.write(self._input, view[:_PIECE_BYTES]) :]

    def lost(self, tried: str, error: OSError) -> PipelineError:
        """What to tell when it did not go on as it should."""
        slow = isinstance(error, TimeoutError)
        self.close(kill=slow)
        told = self._told.strip().splitlines()
        said = str(error) if slow else "; ".join(line for line in told[-3:] if line) or str(error)
        found = next((line.strip("@ ") for line in told if "HOST IDENTIFICATION HAS CHANGED" in line), said)
        return OutsideError(
            f"{self.host.name} ({self.host.user}@{self.host.address}:{self.host.port}): {tried}: {found}",
            hint=_hint("\n".join([*told, said]), self.host),
        )

    def close(self, *, kill: bool = False) -> None:
        """End it. Twice is fine."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        if kill:
            self._process.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._complaints.exists():
            self._told = self._complaints.read_text(encoding="utf-8", errors="replace")
            self._folder.cleanup()

    _told = ""


def _hint(told: str, host: Host) -> str:
    pinned = host.known_hosts or "~/.ssh/known_hosts"
    jump = host.option("ProxyJump")
    hints = {
        "IDENTIFICATION HAS CHANGED": "the host key is not the pinned one: somebody is in between, or the device was installed anew. "
        f"Compare it at its console before you change {pinned}; docs/runbooks/clone-failed.md",
        "Host key verification failed": f"its host key is not in {pinned}: get it at the console and pin it there",
        "Permission denied": "the device does not take this key: check ansible_user, the key file and the certificate of the inventory",
        "Connection refused": f"no SSH server listens there: is the device up{f', and {jump}' if jump else ''}? "
        "(lab: akidb-pipelines lab up jetson)",
        "it said nothing": "the device hangs, or its drive does: look at its console and its kernel log (dmesg)",
        "timed out": f"the device cannot be reached: is it up{f', and {jump}' if jump else ''}?",
        "Could not resolve": "check ansible_host of the inventory",
        f"{host.python}:": "the device needs Python 3.8 or newer; ansible_python_interpreter says where it is",
        "sudo:": "the user needs passwordless sudo for python3, or ansible_become must be false",
    }
    return next(
        (hint for sign, hint in hints.items() if sign in told), "look at the device and the network; docs/runbooks/clone-failed.md"
    )


def parse_source(url: str) -> tuple[Connection, str]:
    """A host and the drive on it from `ssh://USER@HOST:PORT/dev/...`; keys and known hosts are the user's own.

    Raises:
        InputError: it is not written so.
    """
    match = _URL.fullmatch(url)
    if not match:
        raise InputError(f"{url!r} names no drive", hint="write ssh://USER@HOST:PORT/dev/nvme0n1")
    user = match["user"] or os.environ.get("USER", "root")
    address, port = match["address"], int(match["port"] or 22)
    home = Path.home() / ".ssh"
    options: list[tuple[str, str]] = []
    known = home / "known_hosts"
    keys = [home / name for name in ("id_ed25519", "id_ecdsa", "id_rsa") if (home / name).is_file()]
    options += [("IdentityFile", str(key)) for key in keys[1:]]
    host = Host(
        name=address,
        address=address,
        port=port,
        user=user,
        key_file=str(keys[0]) if keys else "",
        known_hosts=str(known) if known.is_file() else "",
        options=tuple(options),
        become=user != "root",
    )
    return Connection(host), match["drive"]
