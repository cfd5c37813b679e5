"""The Swarm lab below one folder: three managers, a service over SQLite on each, a gateway on two of them.

<folder>/lab.json           which engine, network and id; written first, so that `down` finds what a killed `up` has left
<folder>/engine             the lab's own engine, where no other one is named
<folder>/nodes/<name>       a node's socket
<folder>/allow.yaml         the allow-list of drills
<folder>/terraform.tfstate  a state, so that there is one to lose
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.files import digest_file, write_whole
from akidb_pipelines.lab.engine import LabEngine
from akidb_pipelines.lab.swarm import image, service
from akidb_pipelines.lab.swarm.node import LAB_LABEL, VOLUME, Engine, Node, cgroup, import_image, telling, waited
from akidb_pipelines.progress import Progress, Report

if TYPE_CHECKING:
    import docker

NODES = ("staging-lab-1", "staging-lab-2", "staging-lab-3")
SERVICE, GATEWAY = "akidb-metadata", "akidb-gateway"
GATEWAYS = 2
TAG, ALLOWED = "akidb-drill", "allowed"
"""Label of a node that a drill may touch."""
SYSTEM_ENGINE = "unix:///var/run/docker.sock"
_STATE = "lab.json"
_NETWORKS = ipaddress.ip_network("10.214.0.0/16")
_SWARM_PORT = 2377
_READY_SECONDS = 60
_SOCKET_LIMIT = 107


@dataclass(frozen=True)
class _Made:
    """What `up` decided, for whoever comes later."""

    id: str
    engine: str
    own_engine: bool
    subnet: str
    network: str
    node_image: str = ""
    service_image: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class SwarmLab:
    """The lab.

    Args:
        folder: it lies below.
        docker_host: engine to use; empty: the lab's own as root, this machine's else.
        heartbeat_s: after some three of them a silent node counts as down.
    """

    folder: Path
    docker_host: str = ""
    heartbeat_s: float = 1.0

    # --- up and down

    def up(self, seed: Callable[[], Path], report: Report = lambda _: None, mark: Path | None = None) -> None:
        """Make and start it; what runs already goes on.

        Args:
            seed: makes the database that every node begins with.
            report: told the progress.
            mark: a file in its folder that is to be there as soon as anything is.

        Raises:
            OutsideError: there is no Docker engine, or it does not do what is asked.
        """
        if self.running():
            return
        self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        if mark:
            mark.touch()
        made = self._begin(report)
        with self._client(made) as client:
            database = seed()
            made = self._images(client, made, report)
            report(Progress("lab: starting three nodes"))
            with telling("making the network"):
                self._make_network(client, made)
            nodes = [self._node(client, made, name) for name in NODES]
            digest = digest_file(database)

            def start(node: Node) -> None:
                node.boot()
                self.provide_image(node)
                self.put_database(node, database, digest)

            with ThreadPoolExecutor() as each:
                list(each.map(start, nodes))
            report(Progress("lab: forming the swarm, starting its services"))
            self._form(nodes)
            self._serve(nodes[0], made)
            self._save(replace(made, cluster=self.cluster_id()))
            write_whole(self.folder / "allow.yaml", self._allow_list().encode())
            write_whole(self.folder / "terraform.tfstate", first_state(NODES), mode=0o600)
        if not waited(self._is_serving, _READY_SECONDS):
            raise OutsideError("Swarm lab: its services did not start", hint="akidb-pipelines lab down swarm, then try again")
        report(Progress("lab: up"))

    def down(self, report: Report = lambda _: None) -> None:
        """Stop it and remove all of it: containers, volumes, network, control groups, its own engine.

        Raises:
            OutsideError: something does not go.
        """
        if made := self._made():
            if made.own_engine:
                self._own_engine().start(report)  # a killed one has left its network on this machine
            with self._client(made) as client:
                self._remove(client, made)
            _remove_cgroups(cgroup(made.id))
            if made.own_engine:
                self._own_engine().down()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def swarm_is_made(self) -> bool:
        """Whether `up` came to its end once; nodes may be down since, which is a drill's business."""
        return self._made() is not None and (self.folder / "allow.yaml").exists()

    def running(self) -> bool:
        """Whether it is up: every service answers."""
        return self.swarm_is_made() and self._is_serving()

    def _is_serving(self) -> bool:
        import httpx

        try:
            return all(httpx.get(f"{self.service_url(name)}/health", timeout=2).status_code == 200 for name in NODES)
        except httpx.HTTPError:
            return False

    # --- asking

    def _made(self) -> _Made | None:
        try:
            return _Made(**json.loads((self.folder / _STATE).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _known(self) -> _Made:
        if made := self._made():
            return made
        raise OutsideError("the Swarm lab is not up", hint="akidb-pipelines lab up swarm")

    def address(self, name: str) -> str:
        """Of a node."""
        network = ipaddress.ip_network(self._known().subnet)
        return str(network[11 + NODES.index(name)])

    def service_url(self, name: str) -> str:
        """Of the service on a node."""
        return f"http://{self.address(name)}:{service.PORT}"

    def gateway_url(self, name: str) -> str:
        """Of the gateway on a node, where one runs."""
        return f"http://{self.address(name)}:{service.GATEWAY_PORT}"

    @contextmanager
    def node(self, name: str) -> Iterator[Node]:
        """A node.

        Raises:
            OutsideError: the lab is not up, or its engine does not answer.
        """
        made = self._known()
        with self._client(made) as client:
            yield self._node(client, made, name)

    def swarm_id(self) -> str:
        """Of the swarm that this lab was made as; `cluster_id` asks the nodes."""
        return self._known().cluster

    @property
    def service_image(self) -> str:
        """What nodes run."""
        return f"{image.SERVICE}:{self._known().service_image}"

    def provide_image(self, node: Node) -> None:
        """Give a node that was made anew the service's image, as a registry would."""
        node.import_image(self._image(image.SERVICE), image.SERVICE, self._known().service_image)

    def put_database(self, node: Node, database: Path, sha256: str) -> None:
        """Bring a database to a node; its service takes it if it has that digest, and none yet."""
        folder = f"{service.INCOMING}/"
        node.put({f"{folder}{service.DATABASE}": database, f"{folder}sha256": sha256.encode()}, self.service_image)

    # --- making

    def _begin(self, report: Report) -> _Made:
        own, url = False, self.docker_host or os.environ.get("DOCKER_HOST", "")
        if not url and os.geteuid() == 0:
            own, url = True, self._own_engine().url
        longest = self.folder / ("engine/x/containerd/containerd.sock.ttrpc" if own else f"nodes/{NODES[0]}/docker.sock")
        if len(str(longest)) > _SOCKET_LIMIT:
            raise OutsideError(
                f"the lab's sockets would have names such as {longest}: longer than {_SOCKET_LIMIT} characters",
                hint="point AKIDB_HOME at a folder with a shorter path",
            )
        url = url or SYSTEM_ENGINE
        if not url.startswith("unix://"):
            raise OutsideError(
                f"the lab cannot use the Docker engine {url}", hint="it must be on this machine: unix:///var/run/docker.sock"
            )
        lab_id = hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]
        made = _Made(lab_id, url, own, str(free_network(lab_id)), f"akidb-{lab_id}")
        if own:
            self._save(made)  # before there is anything to be taken down
            self._own_engine().start(report)
        with self._client(made):  # says so at once if it does not answer; then there is nothing to remember
            self._save(made)
            return made

    def _save(self, made: _Made) -> None:
        write_whole(self.folder / _STATE, json.dumps(asdict(made)).encode())

    def _own_engine(self) -> LabEngine:
        return LabEngine(self.folder / "engine", "join the group docker, so that the lab can use this machine's own engine")

    @contextmanager
    def _client(self, made: _Made) -> Iterator[docker.DockerClient]:
        import docker

        try:
            client = docker.DockerClient(made.engine, timeout=120)
            client.ping()
        except (docker.errors.DockerException, OSError) as error:
            hint = (
                "start it: sudo systemctl start docker; or set AKIDB_LAB_DOCKER_HOST to one that runs; "
                "or, as root, leave that and DOCKER_HOST empty: the lab then starts its own"
            )
            if "ermission denied" in str(error):
                hint = "join the group docker, or run this as root"
            raise OutsideError(f"Docker engine {made.engine} does not answer: {error}", hint=hint) from error
        try:
            yield client
        finally:
            client.close()

    def _images(self, client: docker.DockerClient, made: _Made, report: Report) -> _Made:
        report(Progress("lab: making images of this machine's programs"))
        tags = {}
        for name, data in ((image.NODE, image.node_image()), (image.SERVICE, image.service_image(Path(service.__file__)))):
            self._image(name).write_bytes(data)
            tags[name] = image.image_tag(data)
        made = replace(made, node_image=tags[image.NODE], service_image=tags[image.SERVICE])
        self._save(made)
        with telling("importing the nodes' image"):
            import_image(client, self._image(image.NODE), image.NODE, made.node_image)
        return made

    def _image(self, name: str) -> Path:
        return self.folder / f"{Path(name).name}.tar"

    def _make_network(self, client: docker.DockerClient, made: _Made) -> None:
        from docker.types import IPAMConfig, IPAMPool

        network = ipaddress.ip_network(made.subnet)
        pool = IPAMPool(subnet=made.subnet, gateway=str(network[1]))
        client.networks.create(made.network, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]), labels={LAB_LABEL: made.id})

    def _node(self, client: docker.DockerClient, made: _Made, name: str) -> Node:
        engine = Engine(client, made.id, made.network, f"{image.NODE}:{made.node_image}")
        return Node(engine, name, self.address(name), self.folder / "nodes" / name)

    def _form(self, nodes: Sequence[Node]) -> None:
        first = nodes[0]
        with first.client() as leader:
            period = int(self.heartbeat_s * 1e9)
            leader.swarm.init(
                advertise_addr=first.address, listen_addr=f"{first.address}:{_SWARM_PORT}", dispatcher_heartbeat_period=period
            )
        for node in nodes[1:]:
            self.join(node, first)
        with first.client() as leader:
            for member in leader.nodes.list():
                label(member)

    def join(self, node: Node, manager: Node) -> None:
        """Make a node a manager of the swarm that another one is of."""
        with manager.client() as leader:
            leader.swarm.reload()
            token = leader.swarm.attrs["JoinTokens"]["Manager"]
        with node.client(60) as client:
            address = f"{node.address}:{_SWARM_PORT}"
            client.swarm.join([f"{manager.address}:{_SWARM_PORT}"], token, advertise_addr=node.address, listen_addr=address)

    def _serve(self, manager: Node, made: _Made) -> None:
        from docker.types import EndpointSpec, Mount, RestartPolicy, ServiceMode

        # Host ports, without the ingress network: not every kernel has IP_VS, and without it that accepts connections that lead nowhere.
        with manager.client() as client:
            client.services.create(
                f"{image.SERVICE}:{made.service_image}",
                name=SERVICE,
                command=["python3", "/service.py", "serve"],
                mode=ServiceMode("global"),
                mounts=[Mount("/data", VOLUME, type="volume")],
                env=["NODE={{.Node.Hostname}}"],
                endpoint_spec=EndpointSpec(mode="dnsrr", ports={service.PORT: (service.PORT, "tcp", "host")}),
                restart_policy=RestartPolicy("any", delay=10**9),
            )
            client.services.create(
                f"{image.SERVICE}:{made.service_image}",
                name=GATEWAY,
                command=["python3", "/service.py", "gateway"],
                mode=ServiceMode("replicated", GATEWAYS),
                env=["NODE={{.Node.Hostname}}"],
                endpoint_spec=EndpointSpec(mode="dnsrr", ports={service.GATEWAY_PORT: (service.GATEWAY_PORT, "tcp", "host")}),
                restart_policy=RestartPolicy("any", delay=10**9),
            )

    def cluster_id(self) -> str:
        """The swarm's own id, asked of whichever node answers.

        Raises:
            OutsideError: none does.
        """
        for name in NODES:
            with suppress(PipelineError), self.node(name) as node, node.client(5) as client:
                cluster = client.info()["Swarm"].get("Cluster") or {}
                if cluster.get("ID"):
                    return str(cluster["ID"])
        raise OutsideError("Swarm lab: no node knows its swarm", hint="akidb-pipelines lab down swarm, then up")

    def _allow_list(self) -> str:
        nodes = "".join(f"  - {name}\n" for name in NODES)
        return f"# What drills may touch here.\nenvironment: lab\ncluster: {self.cluster_id()}\ntargets:\n{nodes}"

    def _remove(self, client: docker.DockerClient, made: _Made) -> None:
        import docker

        mine = {"label": f"{LAB_LABEL}={made.id}"}
        with telling("removing it"):
            for container in client.containers.list(all=True, ignore_removed=True, filters=mine):
                with suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
            for volume in client.volumes.list(filters=mine):
                volume.remove(force=True)
            for network in client.networks.list(filters=mine):
                network.remove()
            if not made.own_engine and made.node_image:
                with suppress(docker.errors.ImageNotFound):
                    client.images.remove(f"{image.NODE}:{made.node_image}")


def label(member: Any) -> None:
    """Allow drills to touch a member of the swarm; `member` is docker-py's."""
    member.reload()
    spec = dict(member.attrs["Spec"])
    member.update({**spec, "Labels": {**spec.get("Labels", {}), TAG: ALLOWED}})


def free_network(lab_id: str) -> ipaddress.IPv4Network:
    """A network that this machine has no route to yet; begins to look where the lab's id says.

    Raises:
        OutsideError: all are taken.
    """
    taken = set()
    for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        taken.add(ipaddress.ip_address(int.from_bytes(bytes.fromhex(fields[1])[::-1], "big")))
    candidates = list(_NETWORKS.subnets(new_prefix=24))
    first = int(lab_id, 16) % len(candidates)
    for network in (*candidates[first:], *candidates[:first]):
        if isinstance(network, ipaddress.IPv4Network) and network[0] not in taken:
            return network
    raise OutsideError(f"Swarm lab: every network of {_NETWORKS} is in use here", hint="ip route; take down labs that nobody needs")


def first_state(nodes: Sequence[str]) -> bytes:
    """A Terraform state as `terraform apply` writes one, of resources that need no provider from anywhere."""
    resources = [
        {
            "mode": "managed",
            "type": "terraform_data",
            "name": name.replace("-", "_"),
            "provider": 'provider["terraform.io/builtin/terraform"]',
            "instances": [{"schema_version": 0, "attributes": {"id": f"{name}-1", "input": {"value": name, "type": "string"}}}],
        }
        for name in nodes
    ]
    lineage = hashlib.sha256(f"{time.time_ns()}".encode()).hexdigest()
    told = {
        "version": 4,
        "terraform_version": "1.9.8",
        "serial": 3,
        "lineage": _uuid(lineage),
        "outputs": {},
        "resources": resources,
    }
    return (json.dumps(told, indent=2) + "\n").encode()


def _uuid(text: str) -> str:
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))


def _remove_cgroups(name: str) -> None:
    """Empty control groups that nodes have left, where they shared this machine's; the kernel refuses those that are in use."""
    for parent in Path("/sys/fs/cgroup").glob(f"**/{name}") if os.geteuid() == 0 else ():
        folders = sorted((p for p in parent.rglob("*") if p.is_dir()), reverse=True)
        for folder in (*folders, parent):
            with suppress(OSError):
                folder.rmdir()
