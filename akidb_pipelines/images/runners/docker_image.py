"""A Docker image taken apart and put together: layers by the digest of their content, and the configuration that names the image.

What is read is what `docker save` writes, in either of its forms (a folder a layer, or blobs by digest); what is written is the first of
them, which every engine loads. The image's id is the digest of its configuration, hence the same wherever it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.runners.shape import Cutter, Piece, Shape, is_tar

_MOST_DOCUMENT = 32 << 20
_BUFFER = 1 << 20
_HINT = "export the image again; if it stays so, the engine's own copy is damaged: build the runner again"


@dataclass(frozen=True)
class Config:
    """An image's configuration."""

    data: bytes
    """As the engine has it, to the byte."""

    @property
    def image_id(self) -> str:
        """`sha256:...`."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def content(self) -> dict[str, Any]:
        """What it says."""
        return dict(json.loads(self.data))

    @property
    def layers(self) -> list[str]:
        """Digests of the layers, lowest first, `sha256:...`; the same may come twice."""
        return list(self.content["rootfs"]["diff_ids"])

    @property
    def architecture(self) -> str:
        """Such as `arm64`."""
        return str(self.content.get("architecture", ""))


class Readable(Protocol):
    """Something to read from."""

    def read(self, count: int, /) -> bytes:
        """So many bytes, fewer only at the end."""
        ...


class LayerReader:
    """A layer while it is read: pieces first, then its digest and shape."""

    def __init__(self, stream: Readable, size_bytes: int) -> None:
        self._stream, self._digest, self.size_bytes = stream, hashlib.sha256(), size_bytes
        self._buffer = memoryview(b"")
        self._cutter = Cutter(self._read, size_bytes)

    def _read(self, count: int) -> bytes:
        if count <= len(self._buffer):
            data, self._buffer = bytes(self._buffer[:count]), self._buffer[count:]
            return data
        parts = [bytes(self._buffer)]
        missing = count - len(self._buffer)
        more = self._stream.read(max(_BUFFER, missing))
        self._digest.update(more)
        parts.append(more[:missing])
        self._buffer = memoryview(more)[missing:]
        return b"".join(parts)

    def pieces(self) -> Iterator[Piece]:
        """See Cutter."""
        return self._cutter.pieces()

    def finished(self) -> tuple[str, Shape]:
        """Its digest (`sha256:...`) and shape, once all pieces were taken."""
        return f"sha256:{self._digest.hexdigest()}", self._cutter.shape


def take_apart(stream: BinaryIO, layer: Callable[[LayerReader], str]) -> Config:
    """Read an exported image.

    Args:
        stream: what `docker save` writes.
        layer: given each layer, reads all its pieces and returns its digest.

    Raises:
        IntegrityError: it ends early, or a layer is not what the configuration says.
    """
    documents: dict[str, bytes] = {}
    layers: dict[str, str] = {}
    aliases: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER) as archive:
            for member in archive:
                if member.issym():
                    aliases[member.name] = _resolved(member)
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                begin = content.read(512)
                if is_tar(begin):
                    layers[member.name] = layer(LayerReader(_Joined(begin, content), member.size))
                elif member.size <= _MOST_DOCUMENT:
                    documents[member.name] = begin + content.read()
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"an exported image is cut short or damaged: {error}", hint=_HINT) from error
    if "manifest.json" not in documents:
        raise IntegrityError("an exported image has no manifest.json: it was cut short", hint=_HINT)
    try:
        told = json.loads(documents["manifest.json"])[0]
        config = Config(documents[told["Config"]])
        found = [layers[aliases.get(name, name)] for name in told["Layers"]]
        expected = config.layers
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise IntegrityError(f"an exported image names what it does not hold: {error!r}", hint=_HINT) from error
    for number, (have, want) in enumerate(zip(found, expected, strict=False)):
        if have != want:
            raise IntegrityError(f"layer {number} is damaged: its digest is {have}, the configuration says {want}", hint=_HINT)
    if len(found) != len(expected):
        raise IntegrityError(f"an exported image has {len(found)} layers, its configuration names {len(expected)}", hint=_HINT)
    return config


def _resolved(member: tarfile.TarInfo) -> str:
    """Where a link of an exported image leads: `../<layer>/layer.tar`."""
    return Path(member.name).parent.joinpath(member.linkname).as_posix().partition("../")[2]


class _Joined:
    """What was read already, and the rest."""

    def __init__(self, begin: bytes, rest: Readable) -> None:
        self._begin, self._rest = begin, rest

    def read(self, count: int, /) -> bytes:
        """See Readable."""
        begin, self._begin = self._begin[:count], self._begin[count:]
        return begin + self._rest.read(count - len(begin)) if len(begin) < count else begin


# --- put together


@dataclass(frozen=True)
class Slot:
    """Where in the archive a layer's content goes."""

    layer: str
    start: int
    size_bytes: int


def lay_out(path: Path, config: Config, sizes: Mapping[str, int], names: Sequence[str]) -> list[Slot]:
    """Write an archive that `docker load` takes, with room for the layers' contents; returns where they go.

    Args:
        path: a new file.
        config: of the image.
        sizes: bytes by layer.
        names: `repository:tag` that it is loaded as.
    """
    layers = config.layers
    files = {layer: f"{layer.removeprefix('sha256:')}/layer.tar" for layer in layers}
    name = f"{config.image_id.removeprefix('sha256:')}.json"
    manifest = [{"Config": name, "RepoTags": list(names) or None, "Layers": [files[layer] for layer in layers]}]
    slots = []
    with path.open("xb") as out:
        for document, data in ((name, config.data), ("manifest.json", json.dumps(manifest).encode())):
            out.write(_header(document, len(data)))
            out.write(data)
            out.write(bytes(-len(data) % 512))
        for layer, file in files.items():
            out.write(_header(file, sizes[layer]))
            slots.append(Slot(layer, out.tell(), sizes[layer]))
            out.seek(sizes[layer] + -sizes[layer] % 512, io.SEEK_CUR)
        out.write(bytes(1024))
        out.truncate()
    return slots


def _header(name: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    return member.tobuf(tarfile.PAX_FORMAT)
