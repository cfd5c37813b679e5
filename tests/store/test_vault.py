"""Signing keys in Vault's transit engine, against a stub that signs for real."""

from __future__ import annotations

import pytest

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
from tests.services.places import content
from tests.services.vault_stub import VaultStub


@pytest.fixture
def vault(monkeypatch):
    with VaultStub() as stub:
        for name, value in stub.environment().items():
            monkeypatch.setenv(name, value)
        yield stub


def test_a_registry_is_signed_with_keys_that_never_leave_vault(vault, tmp_path):
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}", registry_keys="vault:akidb")
    publisher = open_publisher(settings)
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    assert set(vault.keys) == {"akidb-root", "akidb-targets", "akidb-snapshot", "akidb-timestamp"}
    assert list(tmp_path.rglob("*.pem")) == []
    puller = Puller(publisher.registry, tmp_path / "cache")
    assert puller.pull(Wanted("fixtures"), tmp_path / "out").id == "2026-W46/r1"
    for role in ("timestamp", "root"):
        publisher.rotate_keys([role])
        assert puller.pull(Wanted("fixtures"), tmp_path / "out").id == "2026-W46/r1"
    publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert puller.pull(Wanted("fixtures"), tmp_path / "out").id == "2026-W47/r1"


def test_a_role_signs_in_as_well_as_a_token_does(vault, tmp_path, monkeypatch):
    monkeypatch.delenv("VAULT_TOKEN")
    monkeypatch.setenv("VAULT_ROLE_ID", vault.role_id)
    monkeypatch.setenv("VAULT_SECRET_ID", vault.secret_id)
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}", registry_keys="vault:akidb")
    open_publisher(settings).publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    assert open_publisher(settings).registry.head("fixtures").id == "2026-W46/r1"


def test_a_wrong_token_is_said_and_nothing_is_published(vault, tmp_path, monkeypatch):
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}", registry_keys="vault:akidb")
    publisher = open_publisher(settings)
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    monkeypatch.setenv("VAULT_TOKEN", "wrong")
    with pytest.raises(OutsideError, match="Vault") as caught:
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert "VAULT_TOKEN" in caught.value.hint
    assert publisher.registry.head("fixtures").id == "2026-W46/r1"


def test_a_vault_that_is_down_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:9")
    monkeypatch.setenv("VAULT_TOKEN", "t")
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}", registry_keys="vault:akidb")
    with pytest.raises(OutsideError, match="Vault"):
        open_publisher(settings).publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
