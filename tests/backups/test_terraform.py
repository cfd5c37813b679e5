"""Terraform's state is kept by serial and lineage: what is stale, cut short or another one's never takes the place of a good copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from akidb_pipelines.backups.terraform import StateShelf, open_states, parse_state, read_source
from akidb_pipelines.errors import CheckError, InputError, IntegrityError
from tests.services.places import BACK_ENDS, place_of, use, with_cold

LINEAGE = "3f0e9c1a-6f1c-4c7e-9d43-0b6b5f2a1c11"


def state_text(serial: int, lineage: str = LINEAGE, **more: object) -> bytes:
    resource = {
        "mode": "managed",
        "type": "oci_core_instance",
        "name": "staging",
        "instances": [{"attributes": {"id": f"i{serial}"}}],
    }
    told = {"version": 4, "terraform_version": "1.9.8", "serial": serial, "lineage": lineage, "resources": [resource], **more}
    return json.dumps(told).encode()


def state(serial: int, **more: object):
    return parse_state(state_text(serial, **more), "test")


@pytest.fixture(params=BACK_ENDS)
def shelf(request, tmp_path, monkeypatch) -> StateShelf:
    place = with_cold(place_of(request.param, request, tmp_path))
    use(place, monkeypatch)
    return open_states(place.settings(tmp_path / "home"))


def test_states_are_kept_by_serial_and_come_back_as_they_were(shelf, tmp_path):
    first, new = shelf.keep(state(7))
    assert new and (first.serial, first.lineage, first.resources) == (7, LINEAGE, 1)
    assert shelf.keep(state(7)) == (first, False), "the same again is no news"
    second, _ = shelf.keep(state(9))
    assert shelf.newest() == second and len(list(shelf.copies())) == 2
    restored = shelf.restore(second, tmp_path / "there" / "terraform.tfstate")
    assert (tmp_path / "there" / "terraform.tfstate").read_bytes() == state_text(9) == restored.data
    assert (tmp_path / "there" / "terraform.tfstate").stat().st_mode & 0o777 == 0o600, "a state holds secrets"
    with pytest.raises(InputError, match="exists"):
        shelf.restore(second, tmp_path / "there" / "terraform.tfstate")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (state(8), "serial 8, the newest copy 9: it is stale"),
        (state(9, outputs={"by": "hand"}), "serial 9 like the newest copy, and other content"),
        (state(12, lineage="another"), "is of lineage another"),
    ],
    ids=["stale", "changed by hand", "another lineage"],
)
def test_what_is_not_the_next_state_is_refused_and_the_copy_stays(tmp_path, settings, found, told):
    shelf = open_states(settings)
    kept, _ = shelf.keep(state(9))
    with pytest.raises(CheckError, match=told):
        shelf.keep(found)
    assert shelf.newest() == kept and shelf.state(kept).serial == 9


def test_a_lineage_that_was_begun_anew_on_purpose_is_taken(settings):
    shelf = open_states(settings)
    shelf.keep(state(9))
    kept, new = shelf.keep(state(1, lineage="another"), new_lineage=True)
    assert new and shelf.newest() == kept
    assert len(list(shelf.copies())) == 2, "the other one's copies stay"


@pytest.mark.parametrize("data", [b"", state_text(3)[:-20], b"[]", b'{"version": 4}', b'{"version": 3}', b"\xff\xfe"])
def test_a_truncated_state_or_none_at_all_is_refused(settings, tmp_path, data):
    path = tmp_path / "terraform.tfstate"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"no Terraform state, or not all of one|state format 3"):
        read_source(settings.model_copy(update={"terraform_state": str(path)}))


def test_a_copy_that_was_changed_in_the_store_is_refused(settings, tmp_path):
    shelf = open_states(settings)
    kept, _ = shelf.keep(state(9))
    path = Path(shelf.area.root) / kept.key
    path.chmod(0o644)
    path.write_bytes(state_text(11))
    with pytest.raises(IntegrityError, match="is not what was kept: serial 11"):
        shelf.restore(kept, tmp_path / "terraform.tfstate")
    assert not (tmp_path / "terraform.tfstate").exists()


def test_states_and_dumps_of_a_folder_are_for_their_owner_only(settings):
    shelf = open_states(settings)
    shelf.keep(state(1))
    assert Path(shelf.area.root).stat().st_mode & 0o777 == 0o700


def test_the_state_is_read_from_where_the_settings_say(settings, tmp_path, monkeypatch, request):
    def read(where: str):
        return read_source(settings.model_copy(update={"terraform_state": where}))

    assert read("") is None
    path = tmp_path / "terraform.tfstate"
    path.write_bytes(state_text(4))
    assert read(str(path)).serial == read(f"file://{path}").serial == 4
    with pytest.raises(InputError, match="No such file"):
        read(str(tmp_path / "none"))
    with pytest.raises(InputError, match="AKIDB_TERRAFORM_STATE is 'ftp://x/y'"):
        read("ftp://x/y")


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_the_state_is_read_from_a_bucket(kind, request, tmp_path, monkeypatch):
    from akidb_pipelines.store.areas import area

    place = with_cold(place_of(kind, request, tmp_path))
    use(place, monkeypatch)
    settings = place.settings(tmp_path / "home")
    area(settings, "artifacts").create("env/staging.tfstate", state_text(5))
    where = f"{place.url}-artifacts/env/staging.tfstate"
    assert read_source(settings.model_copy(update={"terraform_state": where})).serial == 5
