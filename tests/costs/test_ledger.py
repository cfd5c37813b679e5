"""The ledger: nothing is counted twice or lost, whatever arrives and whenever it dies; closed months stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from sqlalchemy import text

from akidb_pipelines.costs.ledger import open_ledger
from akidb_pipelines.costs.sources import Folder
from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
from tests.costs.conftest import TODAY, focus

OCTOBER, NOVEMBER = Month.parse("2026-10"), Month.parse("2026-11")


def oci(*references: str, **more: str) -> list[dict[str, str]]:
    return [{"oci_ReferenceNumber": r, **more} for r in references]


def rolled_up(desk, month: Month = OCTOBER):
    return desk.ledger.roll_up(month, desk.today)


def billed(desk, month: Month = OCTOBER) -> Decimal:
    """What the month's rollup says of Oracle."""
    rolled = desk.ledger.roll_up(month, desk.today)
    return sum((c.billed for c in rolled.cells if c.provider != "AkiDB on premises"), Decimal(0))


def states(desk) -> list[tuple[str, str]]:
    return [(f.name, str(f.state)) for f in desk.ledger.tables.files() if f.source.startswith("file:")]


# --- files


def test_the_same_file_again_is_no_news(desk):
    desk.put("a.csv.gz", oci("r1", "r2"))
    (first,) = desk.take_in()
    (second,) = desk.take_in()
    assert first.is_new and not second.is_new
    assert billed(desk) == Decimal("3.0")


def test_the_same_bytes_under_another_name_count_once(desk):
    desk.put("a.csv", oci("r1"))
    desk.put("b.csv", oci("r1"))
    desk.take_in()
    assert states(desk) == [("a.csv", "taken"), ("b.csv", "duplicate")]
    assert billed(desk) == Decimal("1.5")


def test_a_file_that_was_replaced_is_withdrawn_and_the_new_one_counts(desk):
    desk.put("a.csv", oci("r1", "r2"))
    desk.take_in()
    desk.put("a.csv", oci("r1", "r2", "r3", BilledCost="2"))
    desk.take_in()
    assert sorted(s for _, s in states(desk)) == ["taken", "withdrawn"]
    assert billed(desk) == Decimal("6")


def test_a_replacement_that_is_bad_leaves_the_old_one_counting(desk):
    from akidb_pipelines.costs.checks import check_quarantine

    desk.put("a.csv", oci("r1"))
    desk.take_in()
    desk.put("a.csv", oci("r1", BilledCost="x"))
    desk.take_in()
    assert billed(desk) == Decimal("1.5")
    report = check_quarantine(desk.ledger.tables.files())
    assert not report.passed and "row 1, BilledCost 'x'" in report.broken[0].message


def test_a_file_that_is_mended_under_its_name_clears_the_quarantine(desk):
    from akidb_pipelines.costs.checks import check_quarantine

    desk.put("a.csv", oci("r1", BilledCost="x"))
    desk.take_in()
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    assert check_quarantine(desk.ledger.tables.files()).passed and billed(desk) == Decimal("1.5")


def test_a_file_that_goes_back_to_what_it_was_counts_as_it_was(desk):
    for cost in ("1", "2", "1"):
        desk.put("a.csv", oci("r1", BilledCost=cost))
        desk.take_in()
    assert billed(desk) == Decimal(1)


def test_one_bad_file_does_not_keep_the_others_out(desk):
    desk.put("a.csv", oci("r1"))
    desk.put("b.csv", "not,focus\n1,2\n")
    desk.put("c.csv", oci("r3"))
    assert [str(d.file.state) for d in desk.take_in()] == ["taken", "quarantined", "taken"]
    assert billed(desk) == Decimal("3.0")


def test_lines_that_count_already_in_another_file_refuse_it(desk):
    desk.put("a.csv", oci("r1", "r2"))
    desk.take_in()
    desk.put("b.csv", oci("r2", "r3"))
    (_, bad) = desk.take_in()
    assert "1 of its lines count already in another file, such as r2" in str(bad.reasons[0])
    assert billed(desk) == Decimal("3.0")


def test_a_split_file_is_all_of_its_parts(desk):
    for part in range(1, 4):
        desk.put(f"2026/10/05/x-{part:05d}.csv.gz", oci(f"r{part}"))
    desk.take_in()
    assert billed(desk) == Decimal("4.5")


def test_a_file_that_comes_late_under_an_older_day_is_found(desk):
    desk.put("2026/10/06/b.csv", oci("r2"))
    desk.take_in()
    desk.put("2026/10/02/a.csv", oci("r1"))
    desk.take_in()
    assert billed(desk) == Decimal("3.0")


def test_files_that_are_rotated_count_once_each(desk):
    """`latest` is last month's until the next one comes."""
    desk.put("latest.csv", oci("r1"))
    desk.put("oct.csv", oci("r1"))
    desk.take_in()
    desk.put("latest.csv", oci("r2", BillingPeriodStart="2026-11-01T00:00:00Z"))
    for _ in range(2):
        desk.take_in()
    assert billed(desk) == Decimal("1.5") and billed(desk, NOVEMBER) == Decimal("1.5")


def test_a_file_that_becomes_the_twin_of_another_counts_with_it_and_no_more_by_itself(desk):
    desk.put("a.csv", oci("r1", BilledCost="1"))
    desk.put("b.csv", oci("r2", BilledCost="2"))
    desk.take_in()
    desk.put("a.csv", oci("r2", BilledCost="2"))
    desk.take_in()
    assert billed(desk) == Decimal(2)


def test_two_files_that_are_cut_anew_lose_no_line(desk):
    desk.put("1.csv", oci("a", "b"))
    desk.put("2.csv", oci("c", "d"))
    desk.take_in()
    desk.put("1.csv", oci("a", "b", "c"))
    desk.put("2.csv", oci("d"))
    assert [str(d.file.state) for d in desk.take_in()] == ["taken", "taken"]
    assert billed(desk) == Decimal("6.0")


def test_two_files_that_change_names_lose_nothing(desk):
    for first, second in (("a", "b"), ("b", "a")):
        desk.put("1.csv", oci(first))
        desk.put("2.csv", oci(second))
        for _ in range(2):
            desk.take_in()
    assert billed(desk) == Decimal("3.0")


def test_a_file_is_itself_through_whichever_folder_it_is_found(desk):
    desk.put("x/a.csv", oci("r1"))
    list(desk.ledger.take_in(Folder(desk.folder / "x"), today=TODAY))
    assert [d.is_new for d in desk.take_in()] == [False]
    desk.put("x/a.csv", oci("r1", BilledCost="3"))
    desk.take_in()
    assert billed(desk) == Decimal(3)


AWS = {"ProviderName": "AWS", "ServiceName": "EC2"}


def test_the_same_lines_in_other_bytes_count_once_also_without_keys(desk):
    rows = [{**AWS, "ResourceId": str(n)} for n in range(5)]
    desk.put("a.csv", rows)
    desk.put("a-again.csv.gz", rows)
    desk.put("cumulative.csv", [*rows, {**AWS, "ResourceId": "new"}])
    done = desk.take_in()
    assert billed(desk) == Decimal("7.5")
    assert [str(d.file.state) for d in done] == ["taken", "quarantined", "quarantined"]
    assert all("count already" in str(d.reasons[0]) for d in done[1:])


def test_equal_lines_of_two_files_of_a_provider_without_keys_are_two_charges(desk):
    desk.put("a.csv", [AWS, {**AWS, "ResourceId": "1"}])
    desk.put("b.csv", [AWS, {**AWS, "ResourceId": "2"}])
    desk.take_in()
    assert billed(desk) == Decimal("6.0")


def test_a_good_file_that_is_put_back_clears_the_quarantine(desk):
    from akidb_pipelines.costs.checks import check_quarantine

    for rows in (oci("r1"), oci("r1", BilledCost="x"), oci("r1")):
        desk.put("a.csv", rows)
        desk.take_in()
    assert check_quarantine(desk.ledger.tables.files()).passed and billed(desk) == Decimal("1.5")


def test_a_file_that_was_imported_by_mistake_is_withdrawn(desk):
    desk.put("a.csv", oci("r1"))
    desk.put("other/b.csv", oci("r2"))
    desk.take_in()
    with pytest.raises(InputError, match=r"no file that counts is called c\.csv"):
        desk.ledger.arrivals.withdraw("c.csv")
    desk.ledger.arrivals.withdraw("b.csv")
    assert billed(desk) == Decimal("1.5")


def test_what_came_is_kept_as_it_came_even_if_it_is_refused(desk):
    for name, content in (("a.csv", focus(oci("r1"))), ("b.csv", "nonsense")):
        desk.put(name, content)
    for done in desk.take_in():
        assert desk.ledger.cold.read(f"costs/files/{done.file.sha256}") == (desk.folder / done.file.name).read_bytes()


# --- months


def test_an_open_month_has_one_version_that_is_replaced(desk):
    desk.put("a.csv", oci("r1", BillingPeriodStart="2026-11-01T00:00:00Z"))
    desk.take_in()
    first = desk.ledger.roll_up(NOVEMBER, TODAY)
    desk.put("b.csv", oci("r2", BillingPeriodStart="2026-11-01T00:00:00Z"))
    desk.take_in()
    second = desk.ledger.roll_up(NOVEMBER, TODAY)
    assert (first.version, second.version, second.closed, second.delta) == (1, 1, False, ())
    assert second.line_count > first.line_count


def test_a_late_line_of_a_closed_month_makes_a_further_version_with_the_difference(desk):
    desk.put("a.csv", oci("r1", "r2"))
    desk.take_in()
    before = desk.ledger.roll_up(OCTOBER, TODAY)
    assert (before.version, before.closed) == (1, True)
    desk.put("late.csv", oci("r3", BilledCost="0.25", ServiceName="NETWORK"))
    desk.take_in()
    after = desk.ledger.roll_up(OCTOBER, TODAY)
    assert after.version == 2 and [(c.service, c.lines, c.billed) for c in after.delta] == [("NETWORK", 1, Decimal("0.25"))]
    first = [c for c in desk.ledger.tables.cells("2026-10", sample=False) if c.version == 1]
    assert sum(c.billed for c in first) == before.totals["USD"][0], "what was closed stays"
    assert after.totals["USD"][0] == before.totals["USD"][0] + Decimal("0.25")


def test_a_month_that_was_reported_while_it_was_open_is_closed_as_it_is(desk):
    """Whoever saw it last saw that version; a correction that comes after the closing day is a difference."""
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    assert not desk.ledger.roll_up(OCTOBER, date(2026, 11, 3)).closed
    desk.put("late.csv", oci("r2", BilledCost="4"))
    desk.take_in()
    rolled = desk.ledger.roll_up(OCTOBER, date(2026, 12, 3))
    assert (rolled.version, rolled.closed) == (2, True) and [c.billed for c in rolled.delta if c.provider == "Oracle"] == [
        Decimal(4)
    ]


def test_a_month_that_is_over_is_asked_for_to_be_closed(desk):
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, date(2026, 11, 3))
    assert OCTOBER not in desk.ledger.stale(date(2026, 11, 7)) and OCTOBER in desk.ledger.stale(date(2026, 11, 8))
    assert desk.ledger.roll_up(OCTOBER, date(2026, 11, 8)).closed


def test_a_month_that_loses_its_file_loses_its_cost(desk):
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    rolled_up(desk)
    desk.put("a.csv", oci("r1", BillingPeriodStart="2026-11-01T00:00:00Z"))
    desk.take_in()
    assert OCTOBER in desk.ledger.stale(TODAY)
    rolled = rolled_up(desk)
    assert rolled.version == 2 and [c.billed for c in rolled.delta] == [Decimal("-1.5")]


def test_cells_that_somebody_removed_come_back(desk):
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    before = rolled_up(desk)
    with desk.ledger.catalog.session() as session:
        session.execute(text("DELETE FROM cost_rollups"))
    assert rolled_up(desk).totals == before.totals


def test_a_month_that_nothing_is_known_of_is_refused_and_leaves_no_trace(desk):
    with pytest.raises(InputError, match="no billing lines of 2020-01"):
        desk.ledger.roll_up(Month.parse("2020-01"), TODAY)
    assert desk.ledger.tables.versions(sample=False) == []


def test_a_correction_of_a_closed_month_is_a_difference_too(desk):
    desk.put("a.csv", oci("r1", BilledCost="10"))
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, TODAY)
    desk.put(
        "b.csv", [{"oci_ReferenceNumber": "r9", "oci_BackReferenceNumber": "r1", "BilledCost": "-4", "ConsumedQuantity": "-1"}]
    )
    desk.take_in()
    rolled = desk.ledger.roll_up(OCTOBER, TODAY)
    assert rolled.version == 2 and [c.billed for c in rolled.delta] == [Decimal(-4)]
    assert billed(desk) == Decimal(6)


def test_a_month_whose_files_did_not_change_is_not_added_up_again(desk):
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    assert desk.ledger.roll_up(OCTOBER, TODAY).changed and not desk.ledger.roll_up(OCTOBER, TODAY).changed
    assert OCTOBER not in desk.ledger.stale(TODAY)


def test_other_files_with_the_same_money_make_no_version_and_are_not_asked_for_for_ever(desk):
    desk.put("a.csv", oci("r1"))
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, TODAY)
    desk.put("a.csv", oci("r1", ResourceId="named now"))
    desk.take_in()
    assert OCTOBER in desk.ledger.stale(TODAY)
    assert desk.ledger.roll_up(OCTOBER, TODAY).version == 1 and OCTOBER not in desk.ledger.stale(TODAY)


def test_other_rules_move_a_closed_months_cost_between_teams_and_lose_nothing(desk):
    desk.put("a.csv", oci("r1", Tags="", SubAccountName="ci"))
    desk.take_in()
    before = desk.ledger.roll_up(OCTOBER, TODAY)
    rules = desk.ledger.tagging.rules
    place = rules.compartments["ci"].model_copy(update={"team": "qa"})
    moved = rules.model_copy(update={"compartments": {**rules.compartments, "ci": place}})
    ledger = replace(desk.ledger, tagging=replace(desk.ledger.tagging, rules=moved))
    assert OCTOBER in ledger.stale()
    after = ledger.roll_up(OCTOBER, TODAY)
    assert {c.team: c.billed for c in after.delta} == {"application-engineering": Decimal("-1.5"), "qa": Decimal("1.5")}
    assert after.totals == before.totals


def test_an_effective_cost_that_means_nothing_is_billed_cost_in_the_rollup(desk):
    desk.put("a.csv", oci("r1", "r2", EffectiveCost="0"))
    desk.put("b.csv", [{"ProviderName": "AWS", "EffectiveCost": "0.5"}])
    desk.take_in()
    cells = desk.ledger.roll_up(OCTOBER, TODAY).cells
    assert {c.provider: c.effective for c in cells if c.provider in {"Oracle", "AWS"}} == {
        "Oracle": Decimal("3.0"),
        "AWS": Decimal("0.5"),
    }


def test_on_postgresql_it_is_the_same_to_the_last_digit(desk, postgres, settings):
    desk.put("a.csv", oci("r1", "r2", BilledCost="0.100000000000000001", EffectiveCost="12345678901.000000000000000001"))
    there = replace(desk, ledger=open_ledger(settings.model_copy(update={"catalog": postgres.database(), "cost_source": "x"})))
    rolled = []
    for each in (desk, there):
        each.take_in()
        rolled.append(each.ledger.roll_up(OCTOBER, TODAY))
        each.put("late.csv", oci("r3", BilledCost="0.000000000000000001"))
        each.take_in()
        rolled.append(each.ledger.roll_up(OCTOBER, TODAY))
        (desk.folder / "late.csv").unlink()
    here, late_here, on_server, late_on_server = rolled
    assert (here.cells, late_here.cells, late_here.delta) == (on_server.cells, late_on_server.cells, late_on_server.delta)
    assert late_on_server.version == 2 and late_on_server.delta[0].billed == Decimal("0.000000000000000001")


def test_currencies_are_never_added(desk):
    desk.put("a.csv", [{}, {"ProviderName": "Hetzner", "BillingCurrency": "EUR", "BilledCost": "7"}])
    desk.take_in()
    totals = desk.ledger.roll_up(OCTOBER, TODAY).totals
    assert totals["EUR"][0] == Decimal(7)


# --- made up or real


def test_what_is_made_up_is_not_shown_beside_what_is_real(settings, tmp_path):
    made_up, real = tmp_path / "lab", tmp_path / "bill"
    for folder, cost in ((made_up, "100"), (real, "1")):
        folder.mkdir()
        (folder / "a.csv").write_text(focus([{"BilledCost": cost}]))
    ledger = open_ledger(settings)
    list(ledger.take_in(Folder(made_up, sample=True), today=TODAY))
    sample = ledger.roll_up(OCTOBER, TODAY)
    assert sample.sample and sum(c.billed for c in sample.cells if c.provider == "Oracle") == Decimal(100)
    list(ledger.take_in(Folder(real), today=TODAY))
    rolled = ledger.roll_up(OCTOBER, TODAY)
    assert not rolled.sample and sum(c.billed for c in rolled.cells if c.provider == "Oracle") == Decimal(1)
    ids = [f.sample for f in ledger.tables.files()]
    assert True in ids and False in ids, "the ledger has both, marked"


def test_what_the_lab_made_is_known_for_it_wherever_it_goes(settings, tmp_path):
    from akidb_pipelines.lab.billing import Batch, generate

    generate(tmp_path / "bill", Batch(date(2026, 10, 5), 1))
    (done,) = open_ledger(settings).take_in(Folder(tmp_path / "bill"), today=TODAY)
    assert done.file.sample and open_ledger(settings).sample


def test_a_file_that_is_refused_does_not_hide_the_lab(settings, tmp_path):
    (tmp_path / "notes.csv").write_text("not,focus\n1,2\n")
    list(open_ledger(settings).take_in(Folder(tmp_path / "notes.csv"), today=TODAY))
    assert open_ledger(settings).sample


def test_with_a_source_configured_nothing_made_up_is_shown_even_before_anything_came(settings):
    assert open_ledger(settings).sample
    assert not open_ledger(settings.model_copy(update={"cost_source": "s3://bill"})).sample


# --- faults


def test_lines_that_are_damaged_in_the_store_are_told(desk):
    desk.put("a.csv", oci("r1"))
    (_done,) = desk.take_in()
    (path,) = (desk.ledger.cold.root / "costs" / "lines").glob("*.parquet")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="its manifest says"):
        desk.ledger.roll_up(OCTOBER, TODAY)
    assert desk.ledger.month(OCTOBER).version == 0, "nothing is kept of it"


def test_a_full_disk_is_told_and_nothing_counts(small_disk, tmp_path):
    folder = tmp_path / "bill"
    folder.mkdir()
    (folder / "a.csv").write_text(focus([{"ResourceId": f"{n:064x}"} for n in range(30_000)]))
    store = tmp_path / "store"
    ledger = open_ledger(
        Settings(home=small_disk, store=f"file://{store}", catalog=f"sqlite:///{tmp_path}/catalog.db", cost_source=str(folder))
    )
    with pytest.raises(OutsideError) as error:
        list(ledger.take_in(Folder(folder), today=TODAY))
    assert "free some space" in error.value.hint
    assert ledger.tables.files() == []


KILLED = """
import os, signal, sys
from akidb_pipelines.costs import arrivals as module, ledger as opening
from akidb_pipelines.costs.sources import Folder
from akidb_pipelines.settings import Settings
from pathlib import Path
point, home, folder = sys.argv[1:]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(home=Path(home), cost_source=folder)
ledger = opening.open_ledger(settings)
if point == "read":
    module.read_focus = die
elif point == "lines":
    create = ledger.cold.create
    type(ledger.cold).create = lambda self, key, *a, **k: die() if "/lines/" in key else create(key, *a, **k)
elif point == "entered":
    type(ledger.tables).record_file = die
list(ledger.take_in(Folder(Path(folder))))
"""


@pytest.mark.parametrize("point", ["read", "lines", "entered"])
def test_an_import_that_is_killed_counts_nothing_and_the_next_one_everything_once(desk, settings, point):
    desk.put("a.csv", oci("r1", "r2"))
    command = [sys.executable, "-c", KILLED, point, str(settings.home), str(desk.folder)]
    assert subprocess.run(command, env={**os.environ}, check=False).returncode == -signal.SIGKILL
    assert desk.ledger.tables.files() == []
    (done,) = desk.take_in()
    assert str(done.file.state) == "taken" and billed(desk) == Decimal("3.0")
    assert len(list((desk.ledger.cold.root / "costs" / "files").glob("*"))) == 3, "the price book's of two months, and this one"
    assert not list((settings.home / "tmp").glob("work-*"))


def test_the_last_day_of_a_month_is_priced_though_nobody_looked_on_the_first(desk):
    desk.ledger.price(date(2026, 10, 31))
    desk.ledger.price(date(2026, 11, 2))
    assert desk.ledger.roll_up(OCTOBER, date(2026, 11, 2)).totals["USD"][0] == Decimal(7000)


def test_every_month_with_lines_is_priced(desk):
    desk.put("a.csv", oci("r1", BillingPeriodStart="2026-01-01T00:00:00Z"))
    desk.take_in()
    assert desk.ledger.roll_up(Month.parse("2026-01"), TODAY).totals["USD"][0] == Decimal("7001.5")


def test_a_price_that_changes_for_the_past_reaches_past_months(desk):
    desk.ledger.price(date(2026, 11, 2))
    items = tuple(i for i in desk.ledger.book.items if i.sku == "engineer-hour")
    ledger = replace(desk.ledger, book=desk.ledger.book.model_copy(update={"items": items}))
    assert ledger.roll_up(OCTOBER, TODAY).totals["USD"][0] == Decimal(6000)
    ledger = replace(desk.ledger, book=desk.ledger.book.model_copy(update={"items": ()}))
    assert ledger.roll_up(OCTOBER, TODAY).totals.get("USD", (Decimal(0),))[0] == Decimal(0)


def test_a_day_of_the_price_book_more_replaces_the_one_before(desk):
    desk.ledger.roll_up(NOVEMBER, date(2026, 11, 3))
    early = desk.ledger.month(NOVEMBER).totals["USD"][0]
    desk.ledger.roll_up(NOVEMBER, date(2026, 12, 1))
    assert desk.ledger.month(NOVEMBER).totals["USD"][0] == Decimal(7000) and early < Decimal(500)
