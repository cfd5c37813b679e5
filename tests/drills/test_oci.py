"""Staging on OCI, against a stub that verifies every signature: nothing is touched that may not be, and OCI's own ways do not surprise."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from akidb_pipelines.backups.depot import open_depot
from akidb_pipelines.drills.desk import open_desk
from akidb_pipelines.drills.drill import Limits, Request
from akidb_pipelines.drills.oci_compute import CapacityError, Compute
from akidb_pipelines.drills.oci_staging import OciStaging, open_staging, read_staging
from akidb_pipelines.drills.scenarios import scenario_named
from akidb_pipelines.drills.swarm_ssh import Member
from akidb_pipelines.errors import InputError, OutsideError
from tests.drills.conftest import ALLOWED, NODES, changes, confirmed, refused
from tests.services.http_stub import Status
from tests.services.oci_staging_stub import COMPARTMENT, DOMAINS, OciStagingStub

# --- a whole drill


def test_a_node_is_lost_launched_anew_and_its_database_brought_back(desk, oci, backed_up, settings):
    """STOP, then another one launched, then the old one terminated; the database arrives over SSH and has the bytes of the backup."""
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=confirmed()))
    assert (done.verdict, done.nodes, done.target) == ("passed", ("staging-2",), "oci"), done.reason
    assert changes(oci) == ["POST STOP", "POST", "DELETE"]
    (new,) = oci.named("staging-2")
    assert new.state == "RUNNING" and new.tags.items() >= ALLOWED.items(), "the successor may be lost in the next quarter, too"
    assert any("boot volume of the old staging-2" in f for f in done.findings), "until somebody has seen that all is well"
    deleted = next(e.request for e in oci.log if e.request.method == "DELETE")
    assert deleted.query["preserveBootVolume"] == "true"
    assert any("drift: staging-2 was launched by the SDK" in f for f in done.findings)
    assert any("outage and lost rows are not measured" in f for f in done.findings)
    assert done.backup.id == backed_up.id and done.rta_s is not None and done.criterion("undo_complete").ok
    assert desk.depot.catalog.drills()[-1].target == "oci"


def test_by_default_nothing_is_touched(desk, oci, backed_up):
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", dry_run=True))
    assert done.verdict == "dry_run" and changes(oci) == []


# --- guards


@pytest.mark.parametrize("confirm", ["", "yes", "staging/staging-1/2026-11-15", "staging/staging-2/2020-01-01"])
def test_without_the_right_confirmation_nothing_is_touched(desk, oci, confirm):
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=confirm))
    assert done.verdict == "aborted" and f"--confirm {confirmed()}" in done.corrective_actions[0]
    assert changes(oci) == []


def test_where_a_node_could_not_be_built_anew_none_is_touched(settings, oci, tmp_path, monkeypatch):
    """As in a container of the team tier, which has no Terraform."""

    def told(folder) -> str:
        staging = open_staging(settings)
        staging.staging = replace(staging.staging, terraform=str(folder))
        return refused(open_desk(settings, {"oci": lambda _: staging}), oci, "staging-2")

    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "guard tools: the program terraform is not on this machine; nothing was touched" in told(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "guard tools" in told(tmp_path / "nowhere")


def test_a_node_that_is_not_in_the_allow_list_is_not_touched(desk, oci):
    assert "node build-1: there is none" in refused(desk, oci, "build-1")


def test_a_node_without_the_tag_is_not_touched(desk, oci):
    oci.named("staging-2")[0].tags.pop("akidb-drill")
    assert "its tag akidb-drill is not there" in refused(desk, oci, "staging-2")


def test_a_node_without_the_tag_may_still_be_asked_whether_it_answers(staging, oci):
    """Else whoever takes it out of the drills has its health told as lost."""
    staging = replace(staging, staging=replace(staging.staging, service_url="http://{address}:8080/health"))
    before = staging.service_url("staging-2")
    oci.named("staging-2")[0].tags.pop("akidb-drill")
    assert staging.service_url("staging-2") == before != ""


def test_two_instances_of_one_name_are_not_touched(desk, oci):
    oci.make_instance("staging-2", tags=dict(ALLOWED))
    told = refused(desk, oci, "staging-2")
    assert "several have that name" in told
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", confirm=confirmed("staging-1")))
    assert done.verdict == "aborted" and changes(oci) == [], "nor is another one, while names are not clear"


def test_another_compartment_is_not_touched(desk, oci, monkeypatch):
    monkeypatch.setattr(OciStaging, "cluster_id", lambda _: "ocid1.compartment.oc1..production")
    assert "this is cluster ocid1.compartment.oc1..production" in refused(desk, oci, "staging-2")


def test_without_a_backup_nothing_is_touched(desk, oci):
    assert "there is no backup of ssh://staging-2" in refused(desk, oci, "staging-2")


def test_with_a_backup_that_nobody_verified_nothing_is_touched(desk, oci, settings, staging):
    open_depot(settings).take(staging.database("staging-2"))
    assert "is not verified" in refused(desk, oci, "staging-2")


def test_with_a_backup_that_is_too_old_nothing_is_touched(settings, oci, backed_up):
    desk = open_desk(settings, {"oci": lambda _: open_staging(settings)}, Limits(rpo_s=0))
    assert "guard backup-age" in refused(desk, oci, "staging-2")


def test_when_too_few_managers_would_stay_nothing_is_touched(desk, oci):
    oci.named("staging-3")[0].state = "STOPPED"
    assert "1 healthy managers would stay of" in refused(desk, oci, "staging-2")


@pytest.mark.parametrize("name", ["partition", "quorum_loss", "volume_corruption", "stale_backup", "lost_terraform_state"])
def test_what_is_for_the_lab_alone_is_not_done_on_oci(desk, oci, name):
    done = desk.run("oci", Request(scenario_named(name), "me", "staging-2", confirm=confirmed()))
    assert done.verdict == "aborted" and f"{name} cannot be rehearsed on oci" in done.reason and changes(oci) == []


class FakeSwarm:
    """Members as `docker node ls` would tell them."""

    def __init__(self, *members: Member) -> None:
        self.found = members

    def members(self) -> list[Member]:
        return list(self.found)

    def cluster_id(self) -> str:
        return "the-swarm"


def manager(name: str, *, alive: bool = True, id_: str = "") -> Member:
    return Member(id_ or f"id-{name}", name, ready=alive, manager=True, reachable=alive, leader=name == "staging-1")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((manager("other-4", alive=False), manager("other-5", alive=False)), "2 healthy managers would stay of 5, 3 are needed"),
        ((manager("staging-2", alive=False, id_="ghost"),), "several have that name"),
        ((manager("staging-1", alive=False, id_="ghost"),), "node staging-1: several have that name"),
    ],
    ids=["managers that are not in the list", "a ghost of the victim", "a ghost of another"],
)
def test_every_manager_of_the_swarm_counts_for_the_quorum(desk, staging, oci, monkeypatch, more, told):
    """A ghost is a vote that nobody casts."""
    swarm = FakeSwarm(*more, *map(manager, NODES))
    staging.staging = replace(staging.staging, swarm=True, swarm_id="the-swarm")
    monkeypatch.setattr(staging, "_swarm", lambda instances=None: swarm)
    assert sorted(n.name for n in staging.nodes() if n.is_healthy_manager) == list(NODES), "the living one is not hidden"
    assert told in refused(replace(desk, targets={"oci": lambda _: staging}), oci, "staging-2")


def test_a_node_with_several_databases_is_not_lost(settings, oci, tmp_path):
    told = json.loads((tmp_path / "inventory.yaml").read_text())
    told["staging"]["hosts"]["staging-2"]["akidb_databases"]["more"] = "/var/lib/akidb/more.db"
    (tmp_path / "inventory.yaml").write_text(json.dumps(told))
    desk = open_desk(settings, {"oci": lambda _: open_staging(settings)})
    assert "several databases" in refused(desk, oci, "staging-2")


def test_two_operators_do_not_drill_staging_at_once(settings, oci, tmp_path):
    """From another machine, with another AKIDB_HOME: the lease lies in the store."""
    other = settings.model_copy(update={"home": tmp_path / "other-home"})
    ours, theirs = (open_desk(s, {"oci": lambda _, s=s: open_staging(s)}) for s in (settings, other))
    with ours._nobody_else("oci"), pytest.raises(OutsideError, match="drill on oci"):
        theirs.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2"))
    assert changes(oci) == []


# --- OCI's own ways


@pytest.fixture
def compute(settings, oci) -> Compute:
    return Compute(settings, COMPARTMENT, oci.endpoint, wait_s=1, poll_s=0.02)


def test_a_full_availability_domain_leads_to_the_next_one_and_is_told_apart(desk, oci, backed_up):
    oci.full = {DOMAINS[0]}
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=confirmed()))
    assert done.verdict == "passed", done.reason
    assert oci.named("staging-2")[0].domain == DOMAINS[1]
    assert any(f"{DOMAINS[0]} has no room" in f for f in done.findings)
    assert any("says nothing of our recovery" in f for f in done.findings)


def test_when_no_domain_has_room_the_node_gets_its_power_back(desk, oci, backed_up):
    oci.full = set(DOMAINS)
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=confirmed()))
    assert done.verdict == "failed" and "have no room for VM.Standard.A1.Flex" in done.reason
    assert [(u.action, u.ok) for u in done.undo] == [("member", True), ("power_on", True)]
    assert "powered on" in done.undo[0].found and not desk.cabinet.unfinished()
    assert [i.state for i in oci.named("staging-2")] == ["RUNNING"] and changes(oci)[-1] == "POST START"


def test_a_launch_that_was_given_up_waiting_for_makes_no_second_instance(compute, oci):
    old = next(i for i in compute.instances() if i.name == "staging-2")
    compute.stop(old)
    oci.launched_stuck = True
    with pytest.raises(OutsideError, match="is PROVISIONING and not RUNNING after 1 s"):
        compute.replace(old)
    for instance in oci.instances.values():
        instance.stuck = False
    compute.replace(old)
    assert [i.state for i in oci.named("staging-2")] == ["RUNNING"]
    assert changes(oci).count("POST") == 1


def test_what_changed_since_it_was_looked_at_is_not_terminated(compute, oci, monkeypatch):
    old = next(i for i in compute.instances() if i.name == "staging-2")
    compute.stop(old)
    wait = compute._wait

    def meanwhile(instance_id: str, name: str, state: str) -> None:
        wait(instance_id, name, state)
        oci.instances[old.id].etag = "somebody-else-was-here"

    monkeypatch.setattr(compute, "_wait", meanwhile)
    with pytest.raises(OutsideError, match="412 NoEtagMatch"):
        compute.replace(old)
    assert oci.instances[old.id].state == "STOPPED"


def test_what_runs_again_is_not_terminated(compute, oci, monkeypatch):
    old = next(i for i in compute.instances() if i.name == "staging-2")
    compute.stop(old)
    wait = compute._wait

    def meanwhile(instance_id: str, name: str, state: str) -> None:
        wait(instance_id, name, state)
        oci.instances[old.id].state = "RUNNING"

    monkeypatch.setattr(compute, "_wait", meanwhile)
    with pytest.raises(OutsideError, match="runs again: it is not terminated"):
        compute.replace(old)


def test_an_instance_that_does_not_stop_in_time_says_how_it_is(compute, oci):
    old = next(i for i in compute.instances() if i.name == "staging-2")
    oci.instances[old.id].stuck = True
    with pytest.raises(OutsideError, match="is STOPPING and not STOPPED after 1 s"):
        compute.stop(old)


def test_reached_limits_and_refusals_say_what_to_do(compute, oci):
    old = next(i for i in compute.instances() if i.name == "staging-2")
    compute.stop(old)
    oci.launch_error = (400, "LimitExceeded", "standard-a1-core-count")
    with pytest.raises(OutsideError) as refused:
        compute.replace(old)
    assert "LimitExceeded" in refused.value.message and "raise them" in refused.value.hint
    assert not isinstance(refused.value, CapacityError)
    oci.inject(Status(404, "NotAuthorizedOrNotFound"), path="/instances", times=9)
    with pytest.raises(OutsideError) as refused:
        compute.instances()
    assert "manage instance-family" in refused.value.hint


def test_a_wrong_key_is_refused_by_the_stub_and_told(settings, oci, tmp_path, monkeypatch):
    with OciStagingStub() as other:
        (tmp_path / "other").mkdir()
        monkeypatch.setenv("OCI_CONFIG_FILE", str(other.config_file(tmp_path / "other")))
        with pytest.raises(OutsideError, match="401 NotAuthenticated"):
            Compute(settings, COMPARTMENT, oci.endpoint).instances()


def test_an_archived_backup_comes_back_while_the_node_is_built_anew(desk, oci, backed_up, settings, monkeypatch):
    """It is asked for before the clock runs, and waited for when it is needed."""
    depot = open_depot(settings)
    depot.cold.archive(backed_up.key.data)
    monkeypatch.setattr("akidb_pipelines.backups.depot._POLL_S", 0.1)
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=confirmed()))
    assert done.verdict == "passed", done.reason
    restores = [n for n, e in enumerate(oci.log) if "restoreObjects" in e.request.target]
    stops = [n for n, e in enumerate(oci.log) if "action=STOP" in e.request.target]
    assert restores[0] < stops[0]


# --- its file


def test_the_file_that_describes_staging_is_checked(tmp_path, settings):
    path = tmp_path / "bad.yaml"
    for text in ("", "[]", "environment: x", "environment: s\ncluster: c\ntargets: [a]\noci: {ports: 3}\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="AKIDB_DRILL_ALLOW_LIST"):
            read_staging(path)
    with pytest.raises(InputError, match="No such file"):
        read_staging(tmp_path / "none.yaml")
    assert open_staging(settings.model_copy(update={"drill_allow_list": None})) is None


def test_the_example_that_is_shipped_can_be_read():
    example = Path(__file__).parents[2] / "deploy" / "staging.example.yaml"
    staging = read_staging(example)
    assert staging.environment == "staging" and len(staging.nodes) == 3


def test_a_drill_that_was_confirmed_yesterday_is_not_confirmed_today(desk, oci):
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", "staging-2", confirm=f"staging/staging-2/{yesterday}"))
    assert done.verdict == "aborted" and changes(oci) == []
