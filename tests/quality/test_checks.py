"""Each check finds what it is there for, names the row, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from akidb_pipelines.cedar.sandbox import PRODUCT
from akidb_pipelines.errors import InputError
from akidb_pipelines.fixtures.checks import run_akidb_rules, run_ground_truth
from akidb_pipelines.fixtures.manifest import read_manifest
from akidb_pipelines.fixtures.negative import NEGATIVES, build_negatives
from akidb_pipelines.quality.conformance import run_cedar_entities
from akidb_pipelines.quality.matrix import run_authorization_matrix, run_policy_latency
from akidb_pipelines.quality.result import Status
from akidb_pipelines.quality.run_gx import run_columns
from tests.conftest import SEED, WEEK


@pytest.fixture(scope="module")
def negatives(tmp_path_factory, sandbox, migrations):
    out = tmp_path_factory.mktemp("negatives")
    build_negatives(WEEK, SEED, sandbox, migrations, out)
    return out


def check(name, path, sandbox, manifest):
    if name == "columns":
        return run_columns(path, sandbox.model.namespace(PRODUCT)).results
    if name == "cedar_entities":
        return run_cedar_entities(path, sandbox).results
    if name == "authorization_matrix":
        return run_authorization_matrix(path, sandbox).results
    return run_akidb_rules(path, manifest)


def test_a_good_fixture_passes_every_check(built, sandbox):
    for name in ("columns", "cedar_entities", "authorization_matrix", "akidb_rules"):
        broken = [r for r in check(name, built.database, sandbox, built.manifest) if r.status is not Status.PASS]
        assert broken == [], name


@pytest.mark.parametrize("negative", NEGATIVES, ids=lambda n: n.name)
def test_every_negative_fixture_is_found_by_its_check_on_one_row(negatives, sandbox, negative):
    manifest = read_manifest(negatives / "good.manifest.json")
    results = check(negative.found_by, negatives / f"{negative.name}.db", sandbox, manifest)
    broken = {r.rule: r for r in results if r.status is not Status.PASS}
    assert negative.rule in broken, f"found only {sorted(broken)}"
    assert broken[negative.rule].count == 1
    assert broken[negative.rule].samples[0].id


def test_negative_fixtures_are_labelled(negatives):
    labels = json.loads((negatives / "negative.json").read_text())
    assert [f["file"] for f in labels["fixtures"]] == [f"{n.name}.db" for n in NEGATIVES]
    assert all(f["breaks"] and f["found_by"] and f["rule"] for f in labels["fixtures"])


def test_each_engine_finds_what_the_others_miss(negatives, sandbox):
    """Cedar alone knows that February has no 31 days; the column rules alone that a reference dangles."""
    date = negatives / "impossible-date.db"
    assert all(r.status is Status.PASS for r in run_columns(date, sandbox.model.namespace(PRODUCT)).results)
    dangling = negatives / "dangling-tenant.db"
    assert all(r.status is Status.PASS for r in run_cedar_entities(dangling, sandbox).results)


def test_a_wrong_neighbour_is_found(tmp_path, built):
    import numpy as np

    with np.load(built.folder / "ci.groundtruth.npz") as arrays:
        changed = {key: arrays[key] for key in arrays.files}
    key = next(k for k in changed if k.endswith("/neighbors") and "/filtered/" not in k)
    changed[key] = changed[key].copy()
    changed[key][0, 0], changed[key][0, 1] = changed[key][0, 1], changed[key][0, 0]
    np.savez(tmp_path / "t.npz", **changed)
    report = run_ground_truth(built.database, tmp_path / "t.npz", built.manifest, queries=100)
    assert not report.passed
    assert report.broken[0].count == 1


def test_missing_ground_truth_is_found(tmp_path, built):
    import numpy as np

    np.savez(tmp_path / "t.npz", filters=np.array(["none"]))
    assert not run_ground_truth(built.database, tmp_path / "t.npz", built.manifest).passed
    with pytest.raises(InputError, match="no such file"):
        run_ground_truth(built.database, tmp_path / "nowhere.npz", built.manifest)


def test_a_rule_that_cannot_be_judged_is_an_error_and_no_pass(tmp_path, built):
    import apsw

    broken = tmp_path / "ci.db"
    shutil.copy(built.database, broken)
    apsw.Connection(str(broken)).execute("DROP TABLE collection_tier_state")
    statuses = {r.rule: r.status for r in run_akidb_rules(broken, built.manifest)}
    assert statuses["tier follows the tiering rules"] is Status.ERROR


def test_what_is_no_database_is_refused_in_plain_words(tmp_path, sandbox):
    text = tmp_path / "x.db"
    text.write_text("hello")
    for run in (run_cedar_entities, run_authorization_matrix):
        with pytest.raises(InputError, match="no SQLite database"):
            run(text, sandbox)
    with pytest.raises(InputError, match="cannot be read"):
        run_columns(tmp_path / "none.db", sandbox.model.namespace(PRODUCT))


def test_checks_leave_the_file_alone(built, sandbox):
    before = sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in built.folder.iterdir())
    for name in ("columns", "cedar_entities", "authorization_matrix", "akidb_rules"):
        check(name, built.database, sandbox, built.manifest)
    assert sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in built.folder.iterdir()) == before


def test_latency_is_reported_both_ways(sandbox):
    report, found = run_policy_latency(sandbox, policies=2_000)
    assert report.advisory, "a slow machine must not hold a release back"
    assert report.facts["policies"] == 2_000
    assert found.full_scan.p50_ms > found.sliced.p50_ms


def test_great_expectations_is_imported_only_when_it_runs():
    code = "import sys, akidb_pipelines.quality.run_gx; print('great_expectations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
