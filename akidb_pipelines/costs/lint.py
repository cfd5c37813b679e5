"""The linter of plan books: recomputes every line and the total, and says what differs, what is undefined and what is missing. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from akidb_pipelines.costs.money import cents, plain, total
from akidb_pipelines.costs.plan import GB_OF_TB, SHIPPED, Line, Number, Plan, load_model

PRICES = SHIPPED / "oci-prices.yaml"


class Kind(StrEnum):
    """What is wrong; `note` is nothing wrong, but worth knowing."""

    DIFFERS = "differs"
    UNDEFINED = "undefined"
    PRICE = "price"
    MISSING = "missing"
    NOTE = "note"


@dataclass(frozen=True)
class PlanFinding:
    """One thing about a plan."""

    line: str
    """Id of the line, `total`, or what is missing."""
    kind: Kind
    message: str
    stated: Decimal | None = None
    recomputed: Decimal | None = None

    @property
    def difference(self) -> Decimal | None:
        """By how much the statement is too high."""
        return None if self.stated is None or self.recomputed is None else self.stated - self.recomputed


class _Price(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    rate: Number
    rate_unit: str
    free: Number = Decimal(0)
    with_: dict[str, Number] = Field(default={}, alias="with")


class PriceList(BaseModel):
    """List prices by key, and what a plan is expected to have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    prices: tuple[_Price, ...]
    expected: dict[str, str] = {}

    def get(self, name: str) -> _Price | None:
        """A price, if it is listed."""
        return next((p for p in self.prices if p.id == name), None)


def load_prices() -> PriceList:
    """The price list that is shipped."""
    return load_model(PriceList, PRICES, "price list", "the installation")


def lint(plan: Plan, prices: PriceList) -> list[PlanFinding]:
    """Everything that is to be said about a plan, in the order of its lines; empty findings of kinds other than `note` mean a sound plan."""
    found: list[PlanFinding] = []
    for line in plan.lines:
        found += _line(plan, line)
        if price := prices.get(line.price):
            found += _price(plan, line, price, prices)
    found += _total(plan)
    has = {line.price for line in plan.lines} | {line.id for line in plan.lines}
    found += [PlanFinding(k, Kind.MISSING, f"the plan has no {what}") for k, what in prices.expected.items() if k not in has]
    found += _weights(plan)
    return found


def is_sound(findings: list[PlanFinding]) -> bool:
    """Whether there is nothing but notes."""
    return all(f.kind is Kind.NOTE for f in findings)


def _line(plan: Plan, line: Line) -> Iterator[PlanFinding]:
    if plan.tb == "undefined" and "TB" in line.quantities:
        told = " or ".join(f"{_usd(plan.amount(line, gb_of_tb=gb))} at {name}" for name, gb in GB_OF_TB.items())
        yield PlanFinding(line.id, Kind.UNDEFINED, f"a TB is not defined: {told}", line.stated, plan.amount(line))
    # A percentage is of what the document says, or its own error would hide behind those of others.
    amount = plan.amount(line, stated=True)
    if line.stated is None or cents(line.stated) == cents(amount):
        return
    message = f"{_formula(plan, line)} = {_usd(amount)}, not {_usd(line.stated)}"
    if "OCPU" in line.quantities and line.rate:
        cores = line.stated / (line.rate * (plan.quantity(line) / line.quantities["OCPU"]))
        message += f"; {_usd(line.stated)} would be {cores:.1f} OCPU"
    yield PlanFinding(line.id, Kind.DIFFERS, message, line.stated, amount)


def _formula(plan: Plan, line: Line) -> str:
    if line.percent_of:
        base = plan.amount(line, stated=True) * 100 / line.percent
        return f"{plain(line.percent)} % of {_usd(base)}"
    told = " x ".join(f"{plain(n)} {unit}" for unit, n in line.quantities.items())
    free = f" less {plain(line.free)} free" if line.free else ""
    return f"{told}{free} x {plain(line.rate)}"


def _price(plan: Plan, line: Line, price: _Price, prices: PriceList) -> Iterator[PlanFinding]:
    if line.rate != price.rate:
        at_list = plan.quantity(line) * price.rate
        message = f"the rate is {plain(line.rate)} per {price.rate_unit}, the list price {plain(price.rate)}: {_usd(at_list)}"
        yield PlanFinding(line.id, Kind.PRICE, message, plan.amount(line), at_list)
    if price.free and not any(n.free for n in plan.lines if n.price == price.id):
        ways = GB_OF_TB.items() if plan.tb == "undefined" and "TB" in line.quantities else [("", plan.gb_of_tb)]
        after = [(name, max(plan.quantity(line, gb) - price.free, Decimal(0)) * price.rate) for name, gb in ways]
        told = " or ".join(f"{_usd(amount)}{f' at {name}' if name else ''}" for name, amount in after)
        yield PlanFinding(
            line.id,
            Kind.PRICE,
            f"{plain(price.free)} {price.rate_unit}s a month are free: {told} at the list price",
            plan.amount(line),
            after[0][1],
        )
    for name, each in price.with_.items():
        if (other := prices.get(name)) and name not in {n.price for n in plan.lines}:
            yield _companion(plan, line, price, other, each)


def _companion(plan: Plan, line: Line, price: _Price, other: _Price, each: Decimal) -> PlanFinding:
    quantity = plan.quantity(line)
    alone, besides = quantity * price.rate, quantity * each * other.rate
    paid = max(quantity - price.free, Decimal(0)) * price.rate + max(quantity * each - other.free, Decimal(0)) * other.rate
    units = line.quantities.get("OCPU", Decimal(1)) * each
    message = (
        f"{other.title} is billed besides: {_usd(alone)} and {plain(units)} GB for {_usd(besides)} are {_usd(alone + besides)} "
        "at list prices, "
        f"{_usd(paid)} after what is free"
    )
    return PlanFinding(line.id, Kind.MISSING, message, line.stated, paid)


def _total(plan: Plan) -> Iterator[PlanFinding]:
    if plan.stated_total is None:
        return
    added = total(
        [line.stated if line.stated is not None and not line.percent_of else plan.amount(line, stated=True) for line in plan.lines]
    )
    if cents(added) != cents(plan.stated_total):
        message = f"the stated lines with their percentages come to {_usd(added)}, not {_usd(plan.stated_total)}"
        yield PlanFinding("total", Kind.DIFFERS, message, plan.stated_total, added)
    computed = plan.total()
    if cents(computed) != cents(added):
        message = f"every line recomputed, the total is {_usd(computed)}"
        yield PlanFinding("total", Kind.DIFFERS, message, plan.stated_total, computed)


def _weights(plan: Plan) -> Iterator[PlanFinding]:
    budgets = {line.id: plan.budget(line) for line in plan.lines}
    whole = total(list(budgets.values()))
    if not whole:
        return
    by_kind = {k: total([budgets[n.id] for n in plan.lines if n.kind == k]) * 100 / whole for k in ("labour", "cloud")}
    if by_kind["labour"] > by_kind["cloud"]:
        message = (
            f"labour is {by_kind['labour']:.0f} % of the total and OCI {by_kind['cloud']:.0f} %: watch lines, never the total alone"
        )
        yield PlanFinding("total", Kind.NOTE, message)


def _usd(amount: Decimal) -> str:
    """Cents, or the thousandth where that is what differs."""
    exact = amount.quantize(Decimal("0.001"))
    return f"{exact:,}" if exact != cents(amount) else f"{cents(amount):,}"
