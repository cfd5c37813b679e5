"""Which back end a URL means. The only module of the store that knows them all."""

from __future__ import annotations

from pathlib import Path

from akidb_pipelines.errors import InputError
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.objects import ObjectStore


def area(base_url: str, name: str) -> ObjectStore:
    """The store of one area below a base URL.

    Raises:
        InputError: the URL's scheme is not known.
    """
    scheme, _, rest = base_url.partition("://")
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(Path(rest) / name)
    raise InputError(f"AKIDB_STORE={base_url}: unknown kind of store", hint="use file:///an/absolute/folder")
