"""A Docker Engine, as far as runner images need one: images out of it and into it, a probe in a container, sweeping up after builds.

What a killed build or probe has left is known as its own: containers by a label that nothing else has (images that were built, and what is
started from them, do not), images by their build's name, or by having none.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.images.runners import probe

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

BUILDING_LABEL, PROBING_LABEL = "akidb.building", "akidb.probing"
"""Of a container in which a runner is built or probed; its value is the runner's name."""
RUNNER_LABEL, BUILD_LABEL = "akidb.runner", "akidb.build"
"""Of an image, for people, and to know one that has no name yet."""
_BUILD_TAG = re.compile(r":\d{4}-w\d\d-[0-9a-f]{8}$")
"""What a build names its image; a restored one is called otherwise."""
PROBE_PATH = "/akidb/probe.py"
_CHUNK = 2 << 20
_TIMEOUT_SECONDS, _TRANSFER_SECONDS = 120, 3600
"""Of a request; of one that moves an image: the engine gathers all of it before the first byte."""
_REMOVAL_SECONDS = 60


@dataclass(frozen=True)
class Swept:
    """What was left of builds and is removed."""

    containers: tuple[str, ...]
    images: tuple[str, ...]


class Engine:
    """One engine.

    Args:
        url: its address, such as unix:///var/run/docker.sock; empty leaves it to DOCKER_HOST.

    Raises:
        OutsideError: it does not answer.
    """

    def __init__(self, url: str = "") -> None:
        import docker

        self.url = url
        self._name = url or "of DOCKER_HOST"
        with self._telling("connecting to it"):
            self._client: docker.DockerClient = (
                docker.DockerClient(url, timeout=_TIMEOUT_SECONDS) if url else docker.from_env(timeout=_TIMEOUT_SECONDS)
            )
            self._client.ping()

    def close(self) -> None:
        """Let go of it."""
        self._client.close()

    # --- images

    def image_id(self, name: str) -> str:
        """The id of an image, `sha256:...`; empty if there is none of that name or id."""
        import docker

        with self._telling(f"looking for image {name}"):
            try:
                return str(self._client.images.get(name).id)
            except docker.errors.ImageNotFound:
                return ""

    @contextmanager
    def exported(self, image: str) -> Iterator[BinaryIO]:
        """Read an image as `docker save` writes it."""
        with self._telling(f"exporting image {image}"), self._patient():
            chunks = self._client.images.get(image).save(chunk_size=_CHUNK)
            reader = io.BufferedReader(_Chunks(chunks), _CHUNK)
            try:
                yield reader
            finally:
                reader.close()

    def load(self, archive: Path) -> str:
        """Load an image from a file that `docker save` could have written; returns its id."""
        with self._telling(f"loading {archive.name}"), self._patient(), archive.open("rb") as stream:
            for image in self._client.images.load(stream):
                return str(image.id)
        raise OutsideError(f"Docker engine {self._name}: loading {archive.name}: it named no image", hint="look at its log")

    def layers(self, image: str) -> list[str]:
        """Digests of an image's layers, lowest first, `sha256:...`."""
        with self._telling(f"looking at image {image}"):
            return list(self._client.images.get(image).attrs["RootFS"]["Layers"])

    def names(self, image: str) -> list[str]:
        """What an image is called, `repository:tag`, without the names that builds give; empty if it is not there."""
        import docker

        with self._telling(f"looking at image {image}"):
            try:
                return [n for n in self._client.images.get(image).tags if not _BUILD_TAG.search(n)]
            except docker.errors.ImageNotFound:
                return []

    def name(self, image: str, names: Collection[str]) -> None:
        """Give an image names again."""
        with self._telling(f"naming image {image}"):
            for name in names:
                self._client.images.get(image).tag(name)

    def remove(self, image: str) -> None:
        """Remove an image with all its names; nothing happens if it is not there.

        Raises:
            OutsideError: a container uses it.
        """
        import docker

        with self._telling(f"removing image {image}"), suppress(docker.errors.ImageNotFound):
            self._client.images.remove(image, force=True)

    # --- containers

    def probe(self, image: str, request: Mapping[str, Any], runner: str, seconds: int) -> dict[str, Any]:
        """Start an image without network, ask what is on it, and remove the container.

        Args:
            image: which.
            request: see probe.probe.
            runner: its name, for the label.
            seconds: it is killed after so long.

        Raises:
            OutsideError: it does not start, or does not end in time.
        """
        import requests

        with self._telling(f"starting image {image}"):
            container = self._client.containers.create(
                image,
                ["python3", PROBE_PATH, json.dumps(request)],
                entrypoint=[],
                network_mode="none",
                labels={PROBING_LABEL: runner},
                volumes=probe_volumes(),
            )
            try:
                container.start()
                try:
                    code = container.wait(timeout=seconds)["StatusCode"]
                except (requests.exceptions.ConnectionError, requests.exceptions.ReadTimeout) as error:
                    raise OutsideError(
                        f"image {image}: booted, and did not answer within {seconds} s", hint="see what its smoke job waits for"
                    ) from error
                told = container.logs(stdout=True, stderr=False)
                if code != 0:
                    wrote = container.logs(stdout=True, stderr=True).decode(errors="replace")[-1000:]
                    raise OutsideError(
                        f"image {image}: the probe ended with {code}: {wrote}", hint="an image needs python3 to be probed"
                    )
            finally:
                container.remove(force=True)
        try:
            return dict(json.loads(told))
        except ValueError as error:
            raise OutsideError(
                f"image {image}: the probe printed something else: {told[:200]!r}", hint="look at its python3"
            ) from error

    def sweep(self, runner: str, repository: str, *, keep_builds: Collection[str] = ()) -> Swept:
        """Remove what builds of a runner have left: containers, images that were committed and not named, and images of builds.

        Whatever somebody uses, or has given another name, stays.

        Args:
            runner: whose.
            repository: of the names that builds give.
            keep_builds: builds whose images stay.
        """
        import docker

        containers = self.sweep_containers(runner)
        images = []
        with self._telling(f"sweeping what builds of {runner} have left"):
            nameless = self._client.images.list(filters={"dangling": True, "label": f"{RUNNER_LABEL}={runner}"})
            named = [n for i in self._client.images.list(repository) for n in i.tags if _BUILD_TAG.search(n)]
            gone = [str(i.id) for i in nameless if i.labels.get(BUILD_LABEL) not in keep_builds]
            for image in [*gone, *(n for n in named if n.rpartition(":")[2] not in keep_builds)]:
                try:
                    self._client.images.remove(image)
                    images.append(image)
                except docker.errors.ImageNotFound:
                    continue
                except docker.errors.APIError as error:
                    if error.status_code != 409:  # in use
                        raise
        return Swept(containers, tuple(images))

    def sweep_containers(self, runner: str) -> tuple[str, ...]:
        """Remove the containers in which a runner is built or probed, whether they run or not; returns their ids."""
        import docker

        gone = []
        with self._telling(f"sweeping containers of {runner}"):
            for label in (BUILDING_LABEL, PROBING_LABEL):
                for container in self._client.containers.list(
                    all=True, ignore_removed=True, filters={"label": f"{label}={runner}"}
                ):
                    gone.append(str(container.short_id))
                    with suppress(docker.errors.NotFound):  # Packer was faster
                        _remove(container)
        return tuple(gone)

    @contextmanager
    def _patient(self) -> Iterator[None]:
        self._client.api.timeout = _TRANSFER_SECONDS
        try:
            yield
        finally:
            self._client.api.timeout = _TIMEOUT_SECONDS

    @contextmanager
    def _telling(self, tried: str) -> Iterator[None]:
        import docker
        import requests
        import urllib3

        try:
            yield
        except docker.errors.ImageNotFound as error:
            raise OutsideError(
                f"Docker engine {self._name}: {tried}: it is not there",
                hint="build the runner again: akidb-pipelines runners build",
            ) from error
        except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise OutsideError(f"Docker engine {self._name}: {tried}: {error}", hint=_hint(str(error))) from error


def _remove(container: Container) -> None:
    """Remove a container. If somebody is at it, until it is gone: it holds its image. Docker's own wait for that may wait for ever."""
    import docker

    until = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            container.remove(force=True)
        except docker.errors.APIError as error:
            if error.status_code != 409 or time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _hint(found: str) -> str:
    if "no space left" in found.lower():
        return "the engine's disk is full: docker system df, then free some space"
    if "permission denied" in found.lower():
        return "join the group docker, or run this as root"
    return "is it running? on this machine: akidb-pipelines lab up runner; else look at akidb_runner_docker_host, and docker info"


def probe_volumes() -> dict[str, dict[str, str]]:
    """What is mounted into a container for the probe: read-only, it and Dagster Pipes' one module."""
    import dagster_pipes

    return {
        str(Path(probe.__file__)): {"bind": PROBE_PATH, "mode": "ro"},
        str(Path(dagster_pipes.__file__)): {"bind": "/akidb/dagster_pipes.py", "mode": "ro"},
    }


class _Chunks(io.RawIOBase):
    """Chunks as something that can be read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
