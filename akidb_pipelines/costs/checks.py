"""The checks of a billing month: what fails it, and what is only told. docs/costs.md has the table of conditions that they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from time import perf_counter

from akidb_pipelines.catalog.costs import CataloguedCostFile, FileState
from akidb_pipelines.costs.checklist import BLOCKING_CHECKS
from akidb_pipelines.costs.ledger import PRICES, Ledger, RolledMonth
from akidb_pipelines.costs.money import CENT, cents, total
from akidb_pipelines.costs.oci_usage import UsageTotal
from akidb_pipelines.costs.oddities import EXTRA_COLUMNS, LACKING_COLUMNS
from akidb_pipelines.costs.price_book import PROVIDER
from akidb_pipelines.costs.review import Review
from akidb_pipelines.errors import CheckError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Month
from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status

_ENTITY = "CostRollup"
_FULL, _SOON_DAYS = 0.8, 30
_LATE = timedelta(hours=48)
"""OCI's files come up to a day late: a missing day is news for two days, then a fault."""


def run_month_checks(
    ledger: Ledger, month: Month, names: Sequence[str], *, today: date | None = None, unknown: Sequence[str] | None = None
) -> Iterator[CheckReport]:
    """Check a month as the catalog has it.

    Args:
        ledger: has it.
        month: which.
        names: of the checks that are wanted, see checklist.ROLLUP_CHECKS.
        today: the day as of which days may be missing.
        unknown: names that nobody knows, as the rollup found them; None: it is asked.
    """
    today = today or datetime.now(UTC).date()
    rolled = ledger.month(month)
    found: dict[str, Callable[[], CheckReport]] = {
        "exact": lambda: check_exact(ledger, rolled),
        "known_owners": lambda: check_owners(ledger.unknown(month) if unknown is None else unknown),
        "invoice": lambda: check_invoice(ledger, rolled),
        "days_complete": lambda: check_days(_spans(ledger, month), ledger.days_present(month), month, today),
        "oddities": lambda: check_oddities(ledger.counted(month)),
        "untagged": lambda: check_untagged(ledger, rolled),
        "plan_lines": lambda: check_plan_lines(ledger, rolled),
    }
    for name in names:
        if name in found:
            started = perf_counter()
            report = found[name]()
            yield replace(report, seconds=perf_counter() - started)
    if engines := tuple(n for n in ENGINES if n in names):
        with scratch_folder(ledger.scratch) as folder:
            yield from run_catalogue_checks(ledger.catalog, ledger.sandbox, _ENTITY, engines, folder)


def expect_released(ledger: Ledger, month: Month) -> None:
    """Refuse to report a month that a blocking check holds back.

    Raises:
        CheckError: one does; the message says what it found.
    """
    reports = run_month_checks(ledger, month, BLOCKING_CHECKS)
    if told := [f"{r.check}: {'; '.join(b.message or b.rule for b in r.broken[:3])}" for r in reports if r.holds_back]:
        raise CheckError(f"{month} is held back: {'; '.join(told)}", hint="runbooks/cost-month-held-back.md")


def check_exact(ledger: Ledger, rolled: RolledMonth) -> CheckReport:
    """Lines, rollup and allocation come to the same, to the last of 18 places."""
    if not ledger.is_current(rolled.month):
        told = "files came meanwhile, or rules changed: the month is added up again soon"
        return CheckReport("exact", (_rule("is of the files that count now", False, told),), 0.0, advisory=True)
    lines = {c: (n, b, e) for c, (n, b, e) in ledger.line_totals(rolled.month).items()}
    shares = ledger.shares(rolled.month)
    results = []
    for currency in sorted({*lines, *rolled.totals}):
        rows, billed, effective = lines.get(currency, (0, Decimal(0), Decimal(0)))
        cells = [c for c in rolled.cells if c.currency == currency]
        mine = rolled.totals.get(currency, (Decimal(0), Decimal(0)))
        split = (
            total([s.billed for s in shares if s.currency == currency]),
            total([s.effective for s in shares if s.currency == currency]),
        )
        count = sum(c.lines for c in cells)
        results += [
            _rule(f"{currency}: every line is in the rollup", count == rows, f"{rows} lines, {count} in the rollup"),
            _rule(
                f"{currency}: rollup = lines",
                mine == (billed, effective),
                f"lines {billed} and {effective}, rollup {mine[0]} and {mine[1]}",
            ),
            _rule(
                f"{currency}: allocation = rollup",
                split == mine,
                f"rollup {mine[0]} and {mine[1]}, allocation {split[0]} and {split[1]}",
            ),
        ]
    return CheckReport("exact", tuple(results), 0.0, {"lines": rolled.line_count})


def check_owners(unknown: Sequence[str]) -> CheckReport:
    """Every team, tenant and compartment that is named is known."""
    results = [_rule(f"{name} is known", False, f"{name} is not known: its cost is unallocated", name) for name in unknown]
    return CheckReport("known_owners", tuple(results) or (_rule("every owner is known", True),), 0.0)


def check_invoice(ledger: Ledger, rolled: RolledMonth) -> CheckReport:
    """Each provider's rollup is its invoice, to the cent, where the price book has one."""
    results = []
    for invoice in ledger.book.invoices:
        if invoice.month == str(rolled.month):
            mine = [c for c in rolled.cells if c.provider == invoice.provider and c.currency == ledger.book.currency]
            billed = total([c.billed for c in mine])
            told = f"{invoice.provider} invoices {invoice.amount}, its lines come to {cents(billed)}"
            results.append(_rule(f"{invoice.provider}: rollup = invoice", abs(billed - invoice.amount) <= CENT, told))
    return CheckReport("invoice", tuple(results) or (_rule("no invoice is entered", True),), 0.0, {"invoices": len(results)})


def _spans(ledger: Ledger, month: Month) -> dict[str, tuple[bool, bool]]:
    """Whether each provider billed in the month before, and in the one after: its span then goes over this one's edge."""
    before, after = (ledger.days_present(month.shift(n)) for n in (-1, 1))
    return {provider: (provider in before, provider in after) for provider in {*before, *after}}


def check_days(
    spans: Mapping[str, tuple[bool, bool]], present: Mapping[str, Sequence[date]], month: Month, today: date
) -> CheckReport:
    """No day is missing between a provider's first and last: news for two days, then a fault."""
    results, late = [], False
    for provider, days in present.items():
        inside = [d for d in days if month.first <= d <= month.last]
        if not inside:
            continue
        from_before, goes_on = spans.get(provider, (False, False))
        first, last = month.first if from_before else inside[0], month.last if goes_on else inside[-1]
        missing = sorted({first + timedelta(days=n) for n in range((last - first).days + 1)} - set(inside))
        late = late or any(today - d > _LATE for d in missing)
        told = f"no lines for {', '.join(str(d) for d in missing[:5])}" + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        results.append(_rule(f"{provider}: no day is missing", not missing, told, *(str(d) for d in missing)))
    return CheckReport("days_complete", tuple(results), 0.0, advisory=not late)


def check_oddities(files: Sequence[CataloguedCostFile]) -> CheckReport:
    """What is odd about the files that count; accepted, and told."""
    rows: dict[str, int] = {}
    where: dict[str, list[str]] = {}
    for file in files:
        for note in () if file.source.startswith(PRICES) else file.notes:
            number, _, what = note.partition(" ") if note[:1].isdigit() else ("1", "", note)
            rows[what] = rows.get(what, 0) + int(number.replace(",", ""))
            where.setdefault(what, []).append(file.name)
    results = [
        RuleResult("oddity", "CostFile", status=Status.FAIL, count=n, samples=_samples(where[what]), message=f"{n:,} {what}")
        for what, n in rows.items()
    ]
    return CheckReport("oddities", tuple(results) or (_rule("nothing odd", True),), 0.0, {"files": len(files)}, advisory=True)


def _samples(names: Sequence[str]) -> tuple[Sample, ...]:
    return tuple(Sample(name, "") for name in names[:5])


def check_untagged(ledger: Ledger, rolled: RolledMonth) -> CheckReport:
    """No more than the rules allow has neither tag nor compartment."""
    results = []
    for currency, (billed, _) in rolled.totals.items():
        bare = total([c.billed for c in rolled.cells if c.team == "untagged" and c.currency == currency])
        percent = bare * 100 / billed if billed else Decimal(0)
        most = ledger.tagging.rules.untagged_percent
        results.append(
            _rule(f"{currency}: at most {most} % untagged", percent <= most, f"{percent:.1f} % ({cents(bare)}) has no owner's tag")
        )
    return CheckReport("untagged", tuple(results), 0.0, advisory=True)


def check_plan_lines(ledger: Ledger, rolled: RolledMonth) -> CheckReport:
    """Every service is in the plan."""
    lacking: dict[str, Decimal] = {}
    for cell in rolled.cells:
        if cell.currency == ledger.plan.currency and ledger.plan.line_of(cell.service, cell.sku) is None:
            lacking[cell.service] = lacking.get(cell.service, Decimal(0)) + cell.billed
    results = [
        _rule(f"{service} is planned", False, f"{service} cost {cents(cost)} and is in no line of the plan", service)
        for service, cost in lacking.items()
    ]
    return CheckReport("plan_lines", tuple(results) or (_rule("every service is planned", True),), 0.0, advisory=True)


def check_usage_api(rolled: RolledMonth, said: Sequence[UsageTotal]) -> CheckReport:
    """OCI's Usage API says about the same: it computes in floats, and is only compared with."""
    results = []
    for item in said:
        billed = total(
            [c.billed for c in rolled.cells if c.service == item.service and c.currency == item.currency and c.provider != PROVIDER]
        )
        told = f"{item.service}: the Usage API says {cents(item.amount)}, the lines {cents(billed)}"
        results.append(_rule(f"{item.service} agrees", abs(billed - item.amount) <= max(CENT, abs(item.amount) / 1000), told))
    return CheckReport("usage_api", tuple(results), 0.0, advisory=True)


def check_quarantine(files: Sequence[CataloguedCostFile]) -> CheckReport:
    """No file is refused, unless another under its name counts."""
    good = {(f.source, f.name): f.imported_at for f in files if f.state in {FileState.TAKEN, FileState.DUPLICATE}}
    bad = [f for f in files if f.state is FileState.QUARANTINED and good.get((f.source, f.name), "") < f.imported_at]
    results = [
        RuleResult(
            "can be read",
            "CostFile",
            status=Status.FAIL,
            count=1,
            samples=tuple(Sample(f.name, n) for n in f.notes[:10]),
            message=f"{f.name}: {f.notes[0] if f.notes else ''}",
        )
        for f in bad
    ]
    return CheckReport("quarantine", tuple(results) or (_rule("every file can be read", True),), 0.0, {"files": len(files)})


def check_header_drift(files: Sequence[CataloguedCostFile]) -> CheckReport:
    """No file has columns that nobody knows, or lacks those that somebody will miss."""
    told = (EXTRA_COLUMNS, LACKING_COLUMNS)
    found = [(f.name, n) for f in files if not f.source.startswith(PRICES) for n in f.notes if n.startswith(told)]
    results = [
        RuleResult("columns are known", "CostFile", status=Status.FAIL, count=1, message=f"{name}: {note}") for name, note in found
    ]
    return CheckReport(
        "header_drift", tuple(results) or (_rule("every column is known", True),), 0.0, {"files": len(files)}, advisory=True
    )


def check_overruns(review: Review) -> CheckReport:
    """No line of the plan will end above it; the total alone says nothing: labour hides whatever a cloud does."""
    results = [
        _rule(
            f"{s.title} stays within its plan",
            not s.overrun,
            f"{s.title}: {s.forecast.expected:,.2f} expected, {cents(s.budget)} planned",
            s.owner,
        )
        for s in review.lines
    ]
    return CheckReport("line_overrun", tuple(results), 0.0, {"expected": round(review.expected, 2)}, advisory=True)


def check_quotas(review: Review) -> CheckReport:
    """No quota is four fifths used, or exhausted within a month."""
    results = []
    for b in review.burns:
        soon = b.days_left is not None and b.days_left <= _SOON_DAYS
        told = f"{b.quota.title}: {b.used:,.1f} of {b.limit:,.0f} {b.quota.unit}" + (
            f", exhausted on {b.exhausted_on}" if soon else ""
        )
        results.append(_rule(f"{b.quota.title} has room", b.fraction < _FULL and not soon, told))
    exhausted = any(b.fraction >= 1 for b in review.burns)
    return CheckReport("quota_headroom", tuple(results), 0.0, advisory=not exhausted)


def _rule(rule: str, ok: bool, told: str = "", *samples: str) -> RuleResult:
    return RuleResult(
        rule,
        _ENTITY,
        status=Status.PASS if ok else Status.FAIL,
        count=0 if ok else max(1, len(samples)),
        samples=() if ok else tuple(Sample(s, told) for s in samples[:20]),
        message="" if ok else told,
    )
