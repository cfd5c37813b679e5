"""Every back end in turn, and a registry in a folder."""

from __future__ import annotations

import pytest

from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import ARTIFACTS, area
from akidb_pipelines.store.objects import ObjectStore
from akidb_pipelines.store.publisher import Publisher, open_publisher
from tests.services.places import BACK_ENDS, Place, place_of, use


@pytest.fixture(params=BACK_ENDS)
def place(request, tmp_path, monkeypatch) -> Place:
    """Each back end in turn."""
    found = place_of(request.param, request, tmp_path)
    use(found, monkeypatch)
    return found


@pytest.fixture
def store(place, tmp_path) -> ObjectStore:
    """An area on each back end in turn."""
    return area(place.settings(tmp_path / "home"), ARTIFACTS)


@pytest.fixture
def publisher(tmp_path) -> Publisher:
    """A registry in a folder."""
    return open_publisher(Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}"))
