"""Which back end a URL means. The only module of the store that knows them all.

| base URL                 | area `artifacts` is            |
|--------------------------|--------------------------------|
| `file:///folder`         | the folder `/folder/artifacts` |
| `s3://name`              | the bucket `name-artifacts`    |
| `oci://namespace/name`   | the bucket `name-artifacts`    |
"""

from __future__ import annotations

import re
from pathlib import Path

from akidb_pipelines.errors import InputError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.objects import ObjectStore
from akidb_pipelines.store.remote import RemoteStore

ARTIFACTS, CHANNELS, COLD, TFSTATE = "artifacts", "channels", "cold", "tfstate"
AREAS = {ARTIFACTS: False, CHANNELS: True, COLD: False, TFSTATE: True}
"""Every area, and whether it keeps earlier contents: OCI's retention rules exclude versioning, hence one bucket each."""
PRIVATE = (COLD, TFSTATE)
"""What only their owner may read: dumps hold users, states hold secrets. Of buckets, policies say so."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,50}")


def area(settings: Settings, name: str, base_url: str = "") -> ObjectStore:
    """The store of one area below a base URL (default: the settings').

    Raises:
        InputError: the URL is not of a form above, or there are no credentials for it.
    """
    base_url = base_url or settings.store_url
    scheme, _, rest = base_url.rstrip("/").partition("://")
    namespace, _, bucket = rest.partition("/")
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(Path(rest) / name, private=name in PRIVATE)
    if scheme == "s3" and _NAME.fullmatch(rest):
        from akidb_pipelines.store.s3 import S3Bucket

        return RemoteStore(S3Bucket(f"{rest}-{name}", timeout_s=settings.store_timeout_s))
    if scheme == "oci" and namespace and _NAME.fullmatch(bucket):
        from akidb_pipelines.store.oci import OciBucket

        return RemoteStore(OciBucket(namespace, f"{bucket}-{name}", settings))
    known = scheme in {"file", "s3", "oci"}
    raise InputError(
        f"store {base_url}: {'this is not how such a URL is written' if known else 'unknown kind of store'}",
        hint="write file:///an/absolute/folder, s3://name or oci://namespace/name",
    )
