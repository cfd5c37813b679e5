"""An issuer of tokens and a front that believes it, for all tests of a file."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.services.front import Front
from tests.services.identity import Issuer


@pytest.fixture(scope="module")
def issuer():
    with Issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def front(issuer, tmp_path_factory):
    with Front(tmp_path_factory.mktemp("front"), issuer) as front:
        yield front


@pytest.fixture(scope="module")
def instance(front):
    """The front's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", front.environment["DAGSTER_HOME"])
        with dg.DagsterInstance.get() as instance:
            yield instance
