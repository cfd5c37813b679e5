"""Staging on OCI, against a stub that verifies every signature: nothing is touched that may not be, and OCI's own ways do not surprise."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from akidb_pipelines.backups.depot import open_depot
from akidb_pipelines.backups.sources import HostDatabase
from akidb_pipelines.drills.desk import Desk, open_desk
from akidb_pipelines.drills.drill import Limits, Request
from akidb_pipelines.drills.oci_compute import CapacityError, Compute
from akidb_pipelines.drills.oci_staging import OciStaging, open_staging, read_staging
from akidb_pipelines.drills.scenarios import scenario_named
from akidb_pipelines.drills.swarm_ssh import Member
from akidb_pipelines.drills.undo import Undoing
from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.settings import Settings
from tests.backups.conftest import make_database
from tests.services.http_stub import Status
from tests.services.oci_staging_stub import COMPARTMENT, DOMAINS, OciStagingStub

NODES = ("staging-1", "staging-2", "staging-3")
ALLOWED = {"akidb-drill": "allowed", "team": "platform"}


@pytest.fixture
def oci():
    with OciStagingStub() as stub:
        for name in (*NODES, "build-1"):
            stub.make_instance(name, tags=dict(ALLOWED))
        stub.make_buckets("base-cold", "base-tfstate", "base-artifacts", "base-channels")
        yield stub


@pytest.fixture
def settings(tmp_path, oci, jetson_lab, monkeypatch) -> Settings:
    """Staging's hosts are the lab's SSH server: what goes over SSH is real, and only OCI is a stub."""
    monkeypatch.setenv("OCI_CONFIG_FILE", str(oci.config_file(tmp_path)))
    host = jetson_lab.inventory.hosts["jetson-a"]
    about = {
        "ansible_host": "localhost",
        "ansible_port": host.port,
        "ansible_user": host.user,
        "ansible_ssh_private_key_file": host.key_file,
        "akidb_known_hosts": host.known_hosts,
        "ansible_ssh_common_args": f"-o HostKeyAlias=[{host.address}]:{host.port}",
    }
    data = tmp_path / "node"
    data.mkdir()
    hosts = {name: {**about, "akidb_databases": {"metadata": str(make_database(data / f"{name}.db"))}} for name in NODES}
    inventory, allow = tmp_path / "inventory.yaml", tmp_path / "staging.yaml"
    inventory.write_text(json.dumps({"staging": {"hosts": hosts}}))
    told = {"endpoint": oci.endpoint, "wait_seconds": 2, "poll_seconds": 0.05, "swarm": False}
    allow.write_text(json.dumps({"environment": "staging", "cluster": COMPARTMENT, "targets": list(NODES), "oci": told}))
    return Settings(
        home=tmp_path / "home", store="oci://axns/base", oci_endpoint=oci.endpoint, inventory=inventory, drill_allow_list=allow
    )


@pytest.fixture
def staging(settings) -> OciStaging:
    found = open_staging(settings)
    assert found is not None
    return found


@pytest.fixture
def desk(settings) -> Desk:
    return open_desk(settings, {"oci": lambda _: open_staging(settings)})


@pytest.fixture
def backed_up(settings, staging):
    """A verified backup of staging-2, an hour old or less."""
    depot = open_depot(settings)
    database = staging.database("staging-2")
    assert isinstance(database, HostDatabase)
    dump = depot.take(database)
    assert not [r for r in depot.run_checks(dump) if r.holds_back]
    return dump


def confirmed(node: str = "staging-2") -> str:
    return f"staging/{node}/{datetime.now(UTC).date()}"


def changes(oci: OciStagingStub) -> list[str]:
    """What was asked of Compute that changes something."""
    asked = [e.request for e in oci.log if "/20160918/instances" in e.request.target]
    return [f"{r.method} {r.query.get('action', '')}".strip() for r in asked if r.method != "GET"]


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


def _refused(desk: Desk, oci: OciStagingStub, node: str) -> str:
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", node, confirm=confirmed(node)))
    assert done.verdict == "aborted" and changes(oci) == []
    return done.reason


def test_where_a_node_could_not_be_built_anew_none_is_touched(settings, oci, tmp_path, monkeypatch):
    """As in a container of the team tier, which has no Terraform."""

    def refused(folder) -> str:
        staging = open_staging(settings)
        staging.staging = replace(staging.staging, terraform=str(folder))
        return _refused(open_desk(settings, {"oci": lambda _: staging}), oci, "staging-2")

    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "guard tools: the program terraform is not on this machine; nothing was touched" in refused(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "guard tools" in refused(tmp_path / "nowhere")


def test_a_node_that_is_not_in_the_allow_list_is_not_touched(desk, oci):
    assert "node build-1: there is none" in _refused(desk, oci, "build-1")


def test_a_node_without_the_tag_is_not_touched(desk, oci):
    oci.named("staging-2")[0].tags.pop("akidb-drill")
    assert "its tag akidb-drill is not there" in _refused(desk, oci, "staging-2")


def test_a_node_without_the_tag_may_still_be_asked_whether_it_answers(staging, oci):
    """Else whoever takes it out of the drills has its health told as lost."""
    staging = replace(staging, staging=replace(staging.staging, service_url="http://{address}:8080/health"))
    before = staging.service_url("staging-2")
    oci.named("staging-2")[0].tags.pop("akidb-drill")
    assert staging.service_url("staging-2") == before != ""


def test_two_instances_of_one_name_are_not_touched(desk, oci):
    oci.make_instance("staging-2", tags=dict(ALLOWED))
    told = _refused(desk, oci, "staging-2")
    assert "several have that name" in told
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", confirm=confirmed("staging-1")))
    assert done.verdict == "aborted" and changes(oci) == [], "nor is another one, while names are not clear"


def test_another_compartment_is_not_touched(desk, oci, monkeypatch):
    monkeypatch.setattr(OciStaging, "cluster_id", lambda _: "ocid1.compartment.oc1..production")
    assert "this is cluster ocid1.compartment.oc1..production" in _refused(desk, oci, "staging-2")


def test_without_a_backup_nothing_is_touched(desk, oci):
    assert "there is no backup of ssh://staging-2" in _refused(desk, oci, "staging-2")


def test_with_a_backup_that_nobody_verified_nothing_is_touched(desk, oci, settings, staging):
    open_depot(settings).take(staging.database("staging-2"))
    assert "is not verified" in _refused(desk, oci, "staging-2")


def test_with_a_backup_that_is_too_old_nothing_is_touched(settings, oci, backed_up):
    desk = open_desk(settings, {"oci": lambda _: open_staging(settings)}, Limits(rpo_s=0))
    assert "guard backup-age" in _refused(desk, oci, "staging-2")


def test_when_too_few_managers_would_stay_nothing_is_touched(desk, oci):
    oci.named("staging-3")[0].state = "STOPPED"
    assert "1 healthy managers would stay of" in _refused(desk, oci, "staging-2")


@pytest.mark.parametrize("name", ["partition", "quorum_loss", "volume_corruption", "stale_backup", "lost_terraform_state"])
def test_what_is_for_the_lab_alone_is_not_done_on_oci(desk, oci, name):
    done = desk.run("oci", Request(scenario_named(name), "me", "staging-2", confirm=confirmed()))
    assert done.verdict == "aborted" and f"{name} cannot be rehearsed on oci" in done.reason and changes(oci) == []


def undoing(desk: Desk, staging: OciStaging, patience_s: float, **chosen: object) -> Undoing:
    """What undoes a drill that lost staging-2 and came to its eviction."""
    journal = desk.cabinet.begin("oci", "node_power_off", datetime.now(UTC))
    journal.write("chosen", **{"victims": ["staging-2"], "survivors": ["staging-1", "staging-3"], **chosen})
    journal.write("undo", action="member", node="staging-2")
    return Undoing(staging, desk.depot, desk.states, journal, patience_s)


def test_a_database_that_cannot_be_asked_is_never_replaced(desk, oci, backed_up, staging, monkeypatch, tmp_path):
    """Undoing looks whether there is a database; "I could not ask" is no "there is none"."""
    path = tmp_path / "node" / "staging-2.db"
    before = path.read_bytes()
    monkeypatch.setattr(HostDatabase, "exists", lambda _: (_ for _ in ()).throw(OutsideError("connection lost")))
    (record,) = undoing(desk, staging, 1).all()
    assert not record.ok and "connection lost" in record.found and path.read_bytes() == before


def test_a_machine_that_is_still_starting_is_not_built_anew_again(desk, oci, backed_up, staging, monkeypatch):
    """sshd is not up when the cloud calls a machine running: undoing waits for it, as the drill does."""

    def stays_off(_):
        raise OutsideError("out of host capacity")

    oci.named("staging-2")[0].state = "STOPPED"
    monkeypatch.setattr(staging, "power_on", stays_off)
    join, said = staging.join, ["connection refused", "connection refused"]
    built, rebuild = [], staging.rebuild

    def not_yet(name):
        if said:
            raise OutsideError(said.pop())
        join(name)

    monkeypatch.setattr(staging, "join", not_yet)
    monkeypatch.setattr(staging, "rebuild", lambda name: (built.append(name), rebuild(name)))
    (record,) = undoing(desk, staging, 10).all()
    assert record.ok and "joined" in record.found, record
    assert not said and built == ["staging-2"]


def test_a_healthy_manager_whose_service_is_silent_is_not_built_anew(desk, oci, backed_up, staging, monkeypatch, tmp_path):
    """Its disk has everything since the last backup."""
    monkeypatch.setattr("akidb_pipelines.drills.undo._SETTLED_S", 0.1)
    staging.staging = replace(staging.staging, service_url="http://127.0.0.1:9")
    before = (tmp_path / "node" / "staging-2.db").read_bytes()
    (record,) = undoing(desk, staging, 1).all()
    assert not record.ok and "staging-2 is a healthy manager, and its service does not answer" in record.found
    assert changes(oci) == [] and (tmp_path / "node" / "staging-2.db").read_bytes() == before


def test_what_runs_is_not_built_anew_by_terraform_either(staging, oci, monkeypatch, tmp_path):
    staging.staging = replace(staging.staging, terraform=str(tmp_path))
    built = []
    monkeypatch.setattr("akidb_pipelines.drills.terraform.Terraform.replace", lambda _, node: built.append(node))
    staging.rebuild("staging-2")
    assert built == []
    oci.named("staging-2")[0].state = "STOPPED"
    staging.rebuild("staging-2")
    assert built == ["staging-2"]


def test_a_node_that_could_not_be_built_anew_is_not_evicted(desk, oci, backed_up, staging, monkeypatch):
    oci.named("staging-2")[0].state = "STOPPED"
    monkeypatch.setattr(staging, "power_on", lambda _: None)
    monkeypatch.setattr(staging, "hindrance", lambda _: "the program terraform is not on this machine")
    evicted = []
    monkeypatch.setattr(staging, "evict", evicted.append)
    (record,) = undoing(desk, staging, 0.1).all()
    assert not record.ok and "cannot be built anew: the program terraform" in record.found and evicted == []


def test_the_empty_database_of_a_new_machine_is_not_taken_for_what_was_lost(desk, oci, backed_up, staging, tmp_path):
    """A drill that was killed before the backup arrived: the service made itself an empty one, and the night's dump is of that."""
    path = tmp_path / "node" / "staging-2.db"
    rows = documents(path)
    undo = undoing(desk, staging, 1, machines={"staging-2": "ocid1.instance.oc1..the-lost-one"})
    path.unlink()
    make_database(path, rows=0)
    nights = desk.depot.take(staging.database("staging-2"))
    (record,) = undo.all()
    assert record.ok and f"{backed_up.id} brought back" in record.found and nights.id != backed_up.id
    assert documents(path) == rows > 0
    path.unlink()
    make_database(path, rows=rows + 1)
    (record,) = undo.all()
    assert record.ok and "nothing to do" in record.found, "once is enough: what was written since stays"
    assert documents(path) == rows + 1


def documents(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM documents").fetchone()[0])


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
    assert told in _refused(replace(desk, targets={"oci": lambda _: staging}), oci, "staging-2")


def test_a_node_with_several_databases_is_not_lost(settings, oci, tmp_path):
    told = json.loads((tmp_path / "inventory.yaml").read_text())
    told["staging"]["hosts"]["staging-2"]["akidb_databases"]["more"] = "/var/lib/akidb/more.db"
    (tmp_path / "inventory.yaml").write_text(json.dumps(told))
    desk = open_desk(settings, {"oci": lambda _: open_staging(settings)})
    assert "several databases" in _refused(desk, oci, "staging-2")


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
