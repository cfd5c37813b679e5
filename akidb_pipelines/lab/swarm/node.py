"""One node of the Swarm lab: a container that runs an engine of its own, driven through that engine's socket.

Where the machine does not let a container have every right (no CAP_SYS_RESOURCE), `privileged` fails to start; then the rights are named one
by one, and the entry point makes writable what Docker mounts read-only.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from akidb_pipelines.errors import OutsideError

if TYPE_CHECKING:
    import docker

LAB_LABEL = "akidb.lab"
"""Of every container, volume and network of a lab; its value is the lab's id."""
VOLUME = "akidb-data"
"""Of the service, in the node's own engine."""
_START_SECONDS = 30
_REQUEST_SECONDS = 20
_IMPORT_SECONDS = 120

_ENTRY = """
mount -o remount,rw /sys
mount -o remount,bind,rw /proc/sys
for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,rw $d; done
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/init
    for p in $(cat /sys/fs/cgroup/cgroup.procs); do echo $p >/sys/fs/cgroup/init/cgroup.procs; done
    sed -e 's/ / +/g' -e 's/^/+/' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi
exec dockerd --host unix:///sock/docker.sock --group {group} --log-level warn {more} 2>&1
"""
_RIGHTS: dict[str, Any] = {
    "cap_add": ["ALL"],
    "cap_drop": ["SYS_RESOURCE"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "device_cgroup_rules": ["a *:* rwm"],
    "cgroupns": "host",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """The engine that nodes are containers of."""

    client: docker.DockerClient
    lab_id: str
    network: str
    image: str


class Node:
    """One node.

    Args:
        engine: it is a container of.
        name: also its host name.
        address: in the lab's network.
        folder: for its socket; only its owner may look into it.
    """

    def __init__(self, engine: Engine, name: str, address: str, folder: Path) -> None:
        self._engine, self.name, self.address, self._folder = engine, name, address, folder
        self._container = f"akidb-{engine.lab_id}-{name}"
        self._volume = f"{self._container}-data"

    # --- as a machine

    def boot(self) -> None:
        """Start it, and make it first if it is not there. Returns when its engine answers.

        Raises:
            OutsideError: it does not.
        """
        import docker

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with telling(f"starting node {self.name}"):
            try:
                container = self._engine.client.containers.get(self._container)
                (self._folder / "docker.sock").unlink(missing_ok=True)
                container.start()
            except docker.errors.NotFound:
                self._make()
        end = time.monotonic() + _START_SECONDS
        while not self.answers():
            if time.monotonic() > end:
                raise OutsideError(
                    f"node {self.name}: its engine did not start: {self._log()}", hint="docs/dr-plan.md says what the lab needs"
                )
            time.sleep(0.05)

    def _make(self) -> None:
        import docker

        try:
            self._create({"privileged": True}, "").start()
        except docker.errors.APIError as error:
            self.wipe()
            if "operation not permitted" not in str(error):
                raise
            self._create(_RIGHTS, f"--cgroup-parent /{cgroup(self._engine.lab_id)}/{self.name}").start()

    def _create(self, options: dict[str, Any], more: str) -> Any:
        client, labels = self._engine.client, {LAB_LABEL: self._engine.lab_id}
        client.volumes.create(self._volume, labels=labels)
        return client.containers.create(
            self._engine.image,
            ["sh", "-c", _ENTRY.format(group=os.getgid(), more=more)],
            entrypoint=["docker-init", "-g", "--"],
            name=self._container,
            hostname=self.name,
            # There is no registry to ask for what was imported.
            environment={"DOCKER_SERVICE_PREFER_OFFLINE_IMAGE": "1"},
            tmpfs={"/run": ""},
            volumes={self._volume: {"bind": "/var/lib/docker", "mode": "rw"}, str(self._folder): {"bind": "/sock", "mode": "rw"}},
            labels=labels,
            network=self._engine.network,
            networking_config={self._engine.network: client.api.create_endpoint_config(ipv4_address=self.address)},
            **options,
        )

    def power_off(self) -> None:
        """As if its power was cut: at once, nothing is told. Twice is fine."""
        import docker

        with telling(f"cutting the power of {self.name}"), suppress(docker.errors.NotFound):
            container = self._engine.client.containers.get(self._container)
            if container.status == "running":
                container.kill("SIGKILL")

    def isolate(self) -> None:
        """Take it off the network; what runs on it goes on. Twice is fine."""
        with telling(f"cutting {self.name} off the network"):
            network = self._engine.client.networks.get(self._engine.network)
            if self.connected():
                network.disconnect(self._container, force=True)

    def reconnect(self) -> None:
        """Put it back on the network, at its own address. Twice is fine."""
        with telling(f"reconnecting {self.name}"):
            if not self.connected():
                self._engine.client.networks.get(self._engine.network).connect(self._container, ipv4_address=self.address)

    def connected(self) -> bool:
        """Whether it is on the network."""
        attributes = self._engine.client.containers.get(self._container).attrs
        return self._engine.network in attributes["NetworkSettings"]["Networks"]

    def wipe(self) -> None:
        """Remove it with its disk. Twice is fine."""
        import docker

        with telling(f"removing {self.name}"):
            with suppress(docker.errors.NotFound):
                self._engine.client.containers.get(self._container).remove(force=True, v=True)
            with suppress(docker.errors.NotFound):
                self._engine.client.volumes.get(self._volume).remove(force=True)
        (self._folder / "docker.sock").unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether it is powered."""
        import docker

        with telling(f"looking at {self.name}"):
            try:
                return bool(self._engine.client.containers.get(self._container).status == "running")
            except docker.errors.NotFound:
                return False

    # --- its engine

    @contextmanager
    def client(self, timeout_s: float = _REQUEST_SECONDS) -> Iterator[docker.DockerClient]:
        """Its own engine."""
        import docker

        with telling(f"asking the engine of {self.name}"):
            client = docker.DockerClient(f"unix://{self._folder / 'docker.sock'}", timeout=timeout_s, version="1.41")
            try:
                yield client
            finally:
                client.close()

    def answers(self) -> bool:
        """Whether its engine does."""
        if not (self._folder / "docker.sock").exists():
            return False
        try:
            with self.client(2) as client:
                return bool(client.ping())
        except OutsideError:
            return False

    def import_image(self, tar: Path, name: str, tag: str) -> None:
        """Give its engine an image, unless it has it."""
        with self.client(_IMPORT_SECONDS) as client:
            import_image(client, tar, name, tag)

    def put(self, files: dict[str, Path | bytes], image: str) -> None:
        """Write files into a folder of the service's volume, in this order; a container that never runs carries them."""
        from docker.types import Mount

        with self.client(_IMPORT_SECONDS) as client, io.BytesIO() as out:
            with tarfile.open(fileobj=out, mode="w") as tar:
                for name, content in files.items():
                    data = content if isinstance(content, bytes) else content.read_bytes()
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = len(data), 0o600
                    tar.addfile(member, io.BytesIO(data))
            carrier = client.containers.create(image, ["true"], mounts=[Mount("/data", VOLUME, type="volume")])
            try:
                carrier.put_archive("/data", out.getvalue())
            finally:
                carrier.remove(force=True)

    def _log(self) -> str:
        import docker

        with suppress(docker.errors.DockerException):
            return str(self._engine.client.containers.get(self._container).logs(tail=20).decode(errors="replace"))
        return "there is no log"


def import_image(client: docker.DockerClient, tar: Path, name: str, tag: str) -> None:
    """Give an engine an image, unless it has it."""
    if not client.images.list(f"{name}:{tag}"):
        client.api.import_image_from_file(str(tar), repository=name, tag=tag)


@contextmanager
def telling(tried: str) -> Iterator[None]:
    """Turn what Docker says into an error that a user can act on."""
    import docker
    import requests
    import urllib3

    try:
        yield
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise OutsideError(f"Swarm lab: {tried}: {error}", hint="akidb-pipelines lab down swarm, then try again") from error


def waited(what: Callable[[], T], seconds: float, every: float = 0.1) -> T | None:
    """What a question answers, once that is something; None if it stays nothing for so long. What Docker refuses meanwhile is nothing."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OutsideError):
            if found := what():
                return found
        if time.monotonic() > end:
            return None
        time.sleep(every)


def cgroup(lab_id: str) -> str:
    """Name of the control group that a lab's nodes have theirs below, where they share this machine's."""
    return f"akidb-lab-{lab_id}"
