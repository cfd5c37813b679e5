"""Which runners there are: what each is built from, which tools it must have, where it runs. Read from the inventory's `akidb_runner_*`.

A runner is one kind of image; its hosts are those of the inventory that name it in `akidb_runner`, and whose variables agree.
docs/runner-images.md lists the variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import InputError
from akidb_pipelines.images.runners.probe import parsed_range
from akidb_pipelines.images.runners.snapshot import snapshot_kind
from akidb_pipelines.machines.inventory import Host, Inventory, open_inventory
from akidb_pipelines.settings import Settings

BUILDERS = ("docker", "oci", "tart")
_COMMANDS = {
    "cedar-policy-cli": "cedar --version",
    "nodejs": "node --version",
    "rust": "rustc --version",
    "xcode-cli": "pkgutil --pkg-info=com.apple.pkg.CLTools_Executables | grep version",
}
"""How tools are asked that do not print their version at `NAME --version`."""
_OF_RUNNER = {
    "akidb_runner",
    "akidb_runner_ansible",
    "akidb_runner_base",
    "akidb_runner_boot_command",
    "akidb_runner_builder",
    "akidb_runner_docker_host",
    "akidb_runner_files",
    "akidb_runner_oci",
    "akidb_runner_packer",
    "akidb_runner_smoke",
    "akidb_runner_template",
    "akidb_runner_timeout_seconds",
    "akidb_runner_tools",
}


@dataclass(frozen=True)
class Tool:
    """A program that a runner must have."""

    name: str
    command: str
    """Prints its version."""
    wanted: str
    """Range of versions, `>=2.39,<3`; empty for any."""


@dataclass(frozen=True)
class Runner:
    """One kind of runner image."""

    name: str
    builder: str
    """One of BUILDERS."""
    template: Path
    """Folder of the Packer template."""
    base: str
    """What it is built from: a Docker image, an OCI image's OCID, a Tart machine."""
    tools: tuple[Tool, ...]
    hosts: tuple[Host, ...]
    """Where it runs; the first of a Mac's is where it is built and its files are read."""
    docker_host: str = ""
    smoke: Path | None = None
    """Shell script of a CI job; None leaves it to the one that is shipped."""
    boot_command: str = ""
    """Boots a restored disk image and prints what the probe says; for builders other than Docker."""
    files: tuple[str, ...] = ()
    """Of a Tart machine: its files, on the host."""
    oci: Mapping[str, str] | None = None
    """`namespace` and `bucket` that images are exported through."""
    packer: Mapping[str, str] | None = None
    """Further variables of the template."""
    ansible: Mapping[str, Any] | None = None
    """Further variables of the Ansible role."""
    timeout_seconds: int = 3600
    """A build is ended after so long."""


@dataclass(frozen=True)
class Fleet:
    """All runners of an inventory, by name."""

    source: str
    runners: Mapping[str, Runner]

    def runner(self, name: str) -> Runner:
        """One runner.

        Raises:
            InputError: there is none of that name.
        """
        if runner := self.runners.get(name):
            return runner
        known = ", ".join(self.runners) or "none"
        raise InputError(
            f"inventory {self.source}: no host has akidb_runner: {name}; there are {known}",
            hint="choose one of these, or set AKIDB_INVENTORY",
        )


def open_fleet(settings: Settings) -> Fleet:
    """The fleet of the inventory that settings name.

    Raises:
        InputError: the inventory cannot be read, or says something wrong of a runner.
    """
    return fleet_of(open_inventory(settings), settings.deploy)


def fleet_of(inventory: Inventory, deploy: Path) -> Fleet:
    """The runners of an inventory; templates and scripts that are no absolute paths lie below `deploy`.

    Raises:
        InputError: something is wrong; the message names the host and the variable.
    """
    hosts: dict[str, list[str]] = {}
    for host, told in inventory.variables.items():
        if name := told.get("akidb_runner"):
            hosts.setdefault(str(name), []).append(host)
    return Fleet(inventory.source, {name: _Reader(inventory, deploy, name, of).runner() for name, of in sorted(hosts.items())})


class _Reader:
    """Reads one runner."""

    def __init__(self, inventory: Inventory, deploy: Path, name: str, hosts: list[str]) -> None:
        self._inventory, self._deploy, self._name, self._hosts = inventory, deploy, name, hosts
        self._told = {k: v for k, v in inventory.variables[hosts[0]].items() if k in _OF_RUNNER}

    def runner(self) -> Runner:
        self._check_hosts()
        snapshot_kind(self._name)
        builder = str(self._told.get("akidb_runner_builder", ""))
        if builder not in BUILDERS:
            raise self._wrong("akidb_runner_builder", f"is {builder!r}", f"write {', '.join(BUILDERS)}")
        base = str(self._told.get("akidb_runner_base", ""))
        if not base:
            raise self._wrong("akidb_runner_base", "is not there", "name the image that the runner is built from")
        template = self._deploy / str(self._told.get("akidb_runner_template", f"packer/{self._name}"))
        if not (template / "runner.pkr.hcl").is_file():
            raise self._wrong("akidb_runner_template", f"is {template}, which has no runner.pkr.hcl", "name a folder below deploy/")
        smoke = self._told.get("akidb_runner_smoke")
        if smoke and not (self._deploy / str(smoke)).is_file():
            raise self._wrong("akidb_runner_smoke", f"is {smoke}, which is no file", "name a shell script")
        oci = self._strings("akidb_runner_oci")
        if builder == "oci" and (missing := {"namespace", "bucket"} - set(oci)):
            raise self._wrong("akidb_runner_oci", f"has no {min(missing)}", "write namespace and bucket")
        files = self._told.get("akidb_runner_files", [])
        if builder == "tart" and not (isinstance(files, list) and files):
            raise self._wrong("akidb_runner_files", f"is {files!r}", "list the machine's files on the Mac")
        return Runner(
            name=self._name,
            builder=builder,
            template=template,
            base=base,
            tools=tuple(self._tools()),
            hosts=tuple(self._inventory.hosts[h] for h in self._hosts),
            docker_host=str(self._told.get("akidb_runner_docker_host", "")),
            smoke=self._deploy / str(smoke) if smoke else None,
            boot_command=str(self._told.get("akidb_runner_boot_command", "")),
            files=tuple(str(f) for f in files),
            oci=oci,
            packer=self._strings("akidb_runner_packer"),
            ansible=self._mapping("akidb_runner_ansible"),
            timeout_seconds=self._seconds(),
        )

    def _check_hosts(self) -> None:
        for host in self._hosts:
            told = self._inventory.variables[host]
            unknown = {k for k in told if k.startswith("akidb_runner")} - _OF_RUNNER
            if unknown:
                raise self._wrong(min(unknown), f"of {host} is unknown", f"known are {', '.join(sorted(_OF_RUNNER))}")
            if different := [k for k in _OF_RUNNER if told.get(k) != self._told.get(k)]:
                found = f"is {told.get(different[0])!r} for {host} and {self._told.get(different[0])!r} for {self._hosts[0]}"
                raise self._wrong(different[0], found, "say it once, in the vars of their group")

    def _tools(self) -> list[Tool]:
        tools = []
        for name, said in self._mapping("akidb_runner_tools").items():
            command, wanted = _COMMANDS.get(name, f"{name} --version"), said
            if isinstance(said, dict):
                command, wanted = str(said.get("command", command)), said.get("version")
            try:
                parsed_range(str(wanted or ""))
            except ValueError as error:
                raise self._wrong(f"akidb_runner_tools.{name}", f"{error}", "write a range such as >=2.39,<3") from None
            tools.append(Tool(name, command, str(wanted or "")))
        if not tools:
            raise self._wrong("akidb_runner_tools", "names none", "name the tools that a CI job needs")
        return tools

    def _mapping(self, name: str) -> Mapping[str, Any]:
        value = self._told.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, f"is {value!r}", "write a mapping")
        return value

    def _strings(self, name: str) -> Mapping[str, str]:
        return {str(k): str(v) for k, v in self._mapping(name).items()}

    def _seconds(self) -> int:
        value = self._told.get("akidb_runner_timeout_seconds", 3600)
        if not isinstance(value, int) or value < 1:
            raise self._wrong("akidb_runner_timeout_seconds", f"is {value!r}", "write a whole number above zero")
        return value

    def _wrong(self, what: str, found: str, hint: str) -> InputError:
        return InputError(f"inventory {self._inventory.source}: runner {self._name}: {what}: {found}", hint=hint)
