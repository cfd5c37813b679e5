"""Which devices there are and how they are reached: an Ansible inventory in YAML, as far as this project needs it.

What belongs here: reading it into values, and saying what is wrong with it. Understood are groups (`hosts`, `vars`, `children`), Ansible's
connection variables, our own `akidb_*` variables, and of its templates only `{{ lookup('env', 'NAME') }}`. The same file works for Ansible
itself. docs/images.md lists the variables.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import InputError
from akidb_pipelines.settings import Settings

JETSONS = "jetson"
"""The group whose hosts are captured and reflashed."""

_TEMPLATE = re.compile(r"\{\{\s*lookup\(\s*'env'\s*,\s*'([A-Za-z_]\w*)'\s*\)\s*\}\}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class Host:
    """How a machine is reached over SSH."""

    name: str
    address: str
    port: int = 22
    user: str = "root"
    key_file: str = ""
    known_hosts: str = ""
    """File with the pinned host keys; empty leaves it to the user's own."""
    options: tuple[tuple[str, str], ...] = ()
    """Further options of ssh_config(5), such as `("ProxyJump", "bastion")`."""
    certificate_command: str = ""
    """Run to get a new certificate when the one of option CertificateFile is missing or has run out."""
    python: str = "python3"
    become: bool = False
    """Whether the user needs sudo to be root."""

    def option(self, name: str) -> str:
        """The value of an option, or nothing."""
        return next((value for key, value in self.options if key.lower() == name.lower()), "")


@dataclass(frozen=True)
class Device:
    """A Jetson and the drive of it that is captured."""

    host: Host
    drive: str
    """Path on the device, such as /dev/nvme0n1."""
    serial: str = ""
    """What the drive's serial number must be; empty when it is not known."""
    facts_root: str = "/"
    """Where the device's facts are read: its root, but for the lab's drives, which have their own."""
    freeze_mounts: tuple[str, ...] = ()
    """File systems on the drive that are frozen while what changed is read again."""
    readonly_mounts: tuple[str, ...] = ()
    """File systems on the drive that cannot be frozen (vfat) and are mounted read-only meanwhile."""
    freeze_seconds: int = 120
    """The device thaws by itself after so long, whatever happens to us."""
    qspi: str = ""
    """Where the copy of its QSPI flash is, taken by hand with NVIDIA's tool."""

    @property
    def name(self) -> str:
        """As the inventory has it."""
        return self.host.name


@dataclass(frozen=True)
class Inventory:
    """All devices, and all hosts (bastions too)."""

    source: str
    hosts: Mapping[str, Host]
    devices: Mapping[str, Device]
    variables: Mapping[str, Mapping[str, Any]]
    """By host, everything that was said of it; the lab reads its own here."""

    def device(self, name: str) -> Device:
        """One device.

        Raises:
            InputError: there is none of that name.
        """
        if device := self.devices.get(name):
            return device
        known = ", ".join(self.devices) or "none"
        raise InputError(
            f"inventory {self.source}: group {JETSONS} has no device {name!r}; it has {known}",
            hint="choose one of these, or set AKIDB_INVENTORY",
        )


def open_inventory(settings: Settings) -> Inventory:
    """The inventory that settings describe; its templates find AKIDB_HOME and USER whether or not the environment has them.

    Raises:
        InputError: see load_inventory.
    """
    environment = {**os.environ, "AKIDB_HOME": str(settings.home)}
    with suppress(KeyError):  # in a container, a user may have a number and no name
        environment["USER"] = pwd.getpwuid(os.geteuid()).pw_name
    return load_inventory(settings.inventory_path, environment)


def load_inventory(path: Path, environment: Mapping[str, str] | None = None) -> Inventory:
    """Read an inventory.

    Args:
        path: a YAML file.
        environment: what `lookup('env', ...)` finds; default: this process's.

    Raises:
        InputError: it cannot be read, or something in it is wrong; the message names the host and the variable.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"inventory {path}: {error}", hint="AKIDB_INVENTORY must name an Ansible inventory in YAML; docs/images.md"
        ) from error
    reader = _Reader(path, os.environ if environment is None else environment)
    return reader.read(content)


_HOST = 1000
"""Depth of a host's own variables: below every group."""


@dataclass(frozen=True)
class _Layer:
    """What is said in one place. As in Ansible a deeper group goes before one above it, of two as deep the later name; a host before all."""

    of: str
    """The group; empty for the host itself."""
    depth: int
    told: Mapping[str, Any]


class _Reader:
    """Walks the groups of one file."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path, self._environment = path, environment

    def read(self, content: object) -> Inventory:
        said: dict[str, dict[str, _Layer]] = {}
        members: list[str] = []
        for group, body in self._mapping(content, "the file").items():
            for host, in_jetsons, layers in self._walk(group, self._mapping(body, group), (), inside=False):
                known = said.setdefault(host, {})
                for layer in layers:
                    # Of a group, or of the host itself, whatever is said in several places counts together.
                    before = known.get(layer.of)
                    known[layer.of] = replace(layer, told={**before.told, **layer.told}) if before else layer
                if in_jetsons and host not in members:
                    members.append(host)
        variables: dict[str, dict[str, Any]] = {}
        for host, known in said.items():
            ordered = sorted(known.values(), key=lambda layer: (layer.depth, layer.of))
            variables[host] = {k: v for layer in ordered for k, v in layer.told.items()}
        filled = {host: {k: self._filled(host, k, v) for k, v in told.items()} for host, told in variables.items()}
        hosts = {host: self._host(host, told) for host, told in filled.items()}
        devices = {name: self._device(hosts[name], filled[name]) for name in members}
        return Inventory(str(self._path), hosts, devices, filled)

    def _walk(
        self, group: str, body: Mapping[str, Any], above: tuple[_Layer, ...], *, inside: bool
    ) -> Iterator[tuple[str, bool, tuple[_Layer, ...]]]:
        """Every host below a group, with whether it is a Jetson, and what the groups above it and itself are told."""
        if unknown := set(body) - {"hosts", "vars", "children"}:
            raise self._wrong(f"group {group}", f"unknown key {sorted(unknown)[0]!r}", "write hosts, vars and children")
        inside = inside or group == JETSONS
        depth = 0 if group == "all" else 1 + sum(layer.of != "all" for layer in above)
        shared = (*above, _Layer(group, depth, self._mapping(body.get("vars"), f"vars of {group}")))
        for host, own in self._mapping(body.get("hosts"), f"hosts of {group}").items():
            yield host, inside, (*shared, _Layer("", _HOST, self._mapping(own, host)))
        for child, content in self._mapping(body.get("children"), f"children of {group}").items():
            yield from self._walk(child, self._mapping(content, child), shared, inside=inside)

    def _mapping(self, value: object, what: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(what, f"is {value!r}, which is no mapping", "see deploy/inventory/example-production.yaml")
        return value

    def _filled(self, host: str, name: str, value: Any) -> Any:
        """A value with its templates filled in."""
        if isinstance(value, list):
            return [self._filled(host, name, v) for v in value]
        if isinstance(value, dict):
            return {k: self._filled(host, name, v) for k, v in value.items()}
        if not isinstance(value, str):
            return value

        def looked_up(match: re.Match[str]) -> str:
            if match[1] not in self._environment:
                raise self._wrong(f"{host}: {name}", f"environment variable {match[1]} is not set", f"set {match[1]}")
            return self._environment[match[1]]

        text = _TEMPLATE.sub(looked_up, value)
        if "{{" in text:
            raise self._wrong(
                f"{host}: {name}",
                f"template {value!r} is not understood here",
                "use {{ lookup('env', 'NAME') }} or the value itself",
            )
        return text

    def _host(self, name: str, told: Mapping[str, Any]) -> Host:
        options = tuple(self._options(name, str(told.get("ansible_ssh_common_args", ""))))
        return Host(
            name=name,
            address=str(told.get("ansible_host", name)),
            port=self._whole(name, told, "ansible_port", 22),
            user=str(told.get("ansible_user", "root")),
            key_file=str(told.get("ansible_ssh_private_key_file", "")),
            known_hosts=str(told.get("akidb_known_hosts", "")),
            options=options,
            certificate_command=str(told.get("akidb_certificate_command", "")),
            python=str(told.get("ansible_python_interpreter", "python3")),
            become=str(told.get("ansible_become", False)).lower() in ("true", "yes", "1", "on"),
        )

    def _options(self, host: str, arguments: str) -> Iterator[tuple[str, str]]:
        """`-o Name=Value` and `-o Name Value` of ssh's command line."""
        try:
            words = iter(shlex.split(arguments))
        except ValueError as error:
            raise self._wrong(f"{host}: ansible_ssh_common_args", f"{arguments!r}: {error}", "close the quotation") from error
        for word in words:
            text = next(words, "") if word == "-o" else word.removeprefix("-o") if word.startswith("-o") else ""
            key, separator, value = text.partition("=") if "=" in text else text.partition(" ")
            if not separator:
                raise self._wrong(f"{host}: ansible_ssh_common_args", f"{word!r} is not understood", "write -o Name=Value")
            yield key, value

    def _device(self, host: Host, told: Mapping[str, Any]) -> Device:
        if not _NAME.fullmatch(host.name):
            raise self._wrong(host.name, "is no name for a device", "use lower-case letters, digits and dashes")
        drive = str(told.get("akidb_drive", ""))
        if not drive.startswith("/"):
            raise self._wrong(f"{host.name}: akidb_drive", f"is {drive!r}", "name the drive's device file, such as /dev/nvme0n1")
        known = {name for name in told if name.startswith("akidb_")} - _VARIABLES
        if known:
            raise self._wrong(host.name, f"unknown variable {sorted(known)[0]}", f"known are {', '.join(sorted(_VARIABLES))}")
        return Device(
            host=host,
            drive=drive,
            serial=str(told.get("akidb_drive_serial", "")),
            facts_root=str(told.get("akidb_facts_root", "/")),
            freeze_mounts=self._paths(host.name, told, "akidb_freeze_mounts"),
            readonly_mounts=self._paths(host.name, told, "akidb_readonly_mounts"),
            freeze_seconds=self._whole(host.name, told, "akidb_freeze_seconds", 120),
            qspi=str(told.get("akidb_qspi", "")),
        )

    def _paths(self, host: str, told: Mapping[str, Any], name: str) -> tuple[str, ...]:
        value = told.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v.startswith("/") for v in value):
            raise self._wrong(f"{host}: {name}", f"is {value!r}", "write a list of absolute paths")
        return tuple(value)

    def _whole(self, host: str, told: Mapping[str, Any], name: str, default: int) -> int:
        try:
            value = int(told.get(name, default))
        except (TypeError, ValueError):
            value = 0
        if value < 1:
            raise self._wrong(f"{host}: {name}", f"is {told.get(name)!r}", "write a whole number above zero")
        return value

    def _wrong(self, what: str, found: str, hint: str) -> InputError:
        return InputError(f"inventory {self._path}: {what}: {found}", hint=hint)


_VARIABLES = {
    "akidb_certificate_command",
    "akidb_drive",
    "akidb_drive_serial",
    "akidb_facts_root",
    "akidb_freeze_mounts",
    "akidb_freeze_seconds",
    "akidb_known_hosts",
    "akidb_lab_mounted",
    "akidb_lab_size_mib",
    "akidb_qspi",
    "akidb_readonly_mounts",
}
