"""A Jetson lab for tests: the shipped lab inventory on free ports, in a folder of its own."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from akidb_pipelines.lab.jetson import JetsonLab
from akidb_pipelines.machines.inventory import Inventory, load_inventory
from tests.services.seaweed import free_ports

SHIPPED = Path(__file__).parents[2] / "deploy/inventory/lab.yaml"


@dataclass(frozen=True)
class LabForTests:
    """`home` is what AKIDB_HOME must be for `inventory_path` to mean this lab."""

    home: Path
    inventory_path: Path
    lab: JetsonLab

    @property
    def inventory(self) -> Inventory:
        return self.lab.inventory


def describe_lab(home: Path, *, size_mib: int | None = None) -> LabForTests:
    """Writes the inventory, with drives of another size if told; nothing is started."""
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    hosts = {name: host for group in shipped["all"]["children"].values() for name, host in group["hosts"].items()}
    for host, port in zip(hosts.values(), free_ports(len(hosts)), strict=True):
        host["ansible_port"] = port
        if size_mib and "akidb_lab_size_mib" in host:
            host["akidb_lab_size_mib"] = size_mib
    home.mkdir(parents=True, exist_ok=True)
    path = home / "inventory.yaml"
    path.write_text(yaml.safe_dump(shipped, width=1000), encoding="utf-8")
    environment = {**os.environ, "AKIDB_HOME": str(home), "USER": pwd.getpwuid(os.geteuid()).pw_name}
    return LabForTests(home, path, JetsonLab(home / "lab" / "jetson", load_inventory(path, environment)))


@contextmanager
def running_lab(home: Path, *, size_mib: int | None = None) -> Iterator[LabForTests]:
    """Up, and down again whatever happens."""
    need_root()
    described = describe_lab(home, size_mib=size_mib)
    try:
        described.lab.up()
        yield described
    finally:
        described.lab.down()


def need_root() -> None:
    """Loop devices and mounts need root; CI has it, so there its absence is a failure."""
    if os.geteuid() == 0:
        return
    reason = "the Jetson lab needs root for loop devices and mounts"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
