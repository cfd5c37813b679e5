"""The lab's Docker engine for a test session, with its base image."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from akidb_pipelines.lab.runner import RunnerLab

_CACHE = Path(__file__).parents[2] / "var" / "cache"


@contextmanager
def running_runner_lab() -> Iterator[RunnerLab]:
    """Its home has a short path: a socket's name must fit into 107 characters. The base image is made once and kept in the checkout."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the lab's Docker engine needs root")
        pytest.skip("the lab's Docker engine needs root")
    home = Path(tempfile.mkdtemp(prefix="akidb-"))
    lab = RunnerLab(home / "lab" / "runner", _CACHE)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()
        shutil.rmtree(home, ignore_errors=True)
