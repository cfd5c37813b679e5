"""The plan book: what a month is planned to cost, as formulas of quantities and rates, and the quotas that were asked for.

A line's amount is never typed in: it is computed, and `stated` says what the plan's document claims, for the linter to compare. Read from
YAML and checked against the models below; docs/costs.md explains every field. Pure, but for reading the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from akidb_pipelines.costs.money import total
from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Month

SHIPPED = Path(__file__).parent / "shipped"
PLAN, CORRECTED = SHIPPED / "plan.yaml", SHIPPED / "plan-corrected.yaml"
M = TypeVar("M", bound=BaseModel)
GB_OF_TB = {"1000 GB": Decimal(1000), "1024 GB": Decimal(1024)}


def _decimal(value: object) -> object:
    """YAML has floats; their shortest text is what was written."""
    return Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


Number = Annotated[Decimal, BeforeValidator(_decimal)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Strict):
    """One line: quantities times a rate, or a percentage of other lines."""

    id: Name
    title: str
    kind: Literal["cloud", "on-premises", "labour", "contingency"]
    owner: str
    """The team that answers for it."""
    quantities: dict[str, Number] = {}
    """Factors by their unit, such as `{OCPU: 24, hours: 730}`; TB are turned into GB."""
    rate: Number = Decimal(0)
    rate_unit: str = ""
    """What the rate is for, such as `OCPU-hour`."""
    free: Number = Decimal(0)
    """Free allowance a month, in the rate's unit."""
    percent: Number = Decimal(0)
    percent_of: tuple[str, ...] = ()
    stated: Number | None = None
    """What the plan's document says; None if it says nothing."""
    price: str = ""
    """Key of the price list, for the linter."""
    services: tuple[str, ...] = ()
    """Service names of billing files whose cost belongs to this line."""
    skus: tuple[str, ...] = ()
    """SKUs that do, where a service is shared between lines; they win over `services`."""
    effective_from: date
    effective_to: date | None = None
    note: str = ""

    def is_effective(self, month: Month) -> bool:
        """Whether the line is planned for a month."""
        return self.effective_from <= month.first and (self.effective_to is None or month.first <= self.effective_to)


class Quota(_Strict):
    """A limit that was asked for."""

    id: Name
    title: str
    limit: Number
    unit: Literal["OCPU", "TB", "GB"]
    kind: Literal["level", "a month"]
    """`level` must not be exceeded at any time; `a month` is used up from the first of each."""
    skus: tuple[str, ...]
    oci_limit: tuple[str, str] | None = None
    """Service and limit name of OCI's Limits API; egress has none."""


class Plan(_Strict):
    """A plan book."""

    format: Literal[1]
    title: str
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    tb: Literal["1000 GB", "1024 GB", "undefined"]
    stated_total: Number | None = None
    lines: tuple[Line, ...]
    quotas: tuple[Quota, ...] = ()
    overrun_percent: Number = Decimal(10)
    """A line that comes to more than this above its plan is told."""
    overrun_floor: Number = Decimal(25)
    """And above this amount: ten percent of nothing is nothing."""

    @model_validator(mode="after")
    def _expect_names(self) -> Plan:
        known = [line.id for line in self.lines]
        if twice := {n for n in known if known.count(n) > 1}:
            raise ValueError(f"line {sorted(twice)[0]} occurs twice")
        for line in self.lines:
            if unknown := [n for n in line.percent_of if n not in known]:
                raise ValueError(f"line {line.id} is a percentage of {unknown[0]}, which there is not")
            if bool(line.percent_of) == bool(line.quantities):
                raise ValueError(f"line {line.id} needs either quantities and a rate, or percent and percent_of")
        by_id = {line.id: line for line in self.lines}
        if nested := [n for line in self.lines for n in line.percent_of if by_id[n].percent_of]:
            raise ValueError(f"line {nested[0]} is a percentage itself; percentages are taken of other lines only")
        return self

    @property
    def gb_of_tb(self) -> Decimal:
        """How many GB a TB has; 1000 while the plan does not say."""
        return GB_OF_TB.get(self.tb, Decimal(1000))

    def line(self, name: str) -> Line:
        """A line by its id."""
        return next(line for line in self.lines if line.id == name)

    def amount(self, line: Line, *, gb_of_tb: Decimal | None = None, stated: bool = False) -> Decimal:
        """What a line comes to.

        Args:
            line: of this plan.
            gb_of_tb: another definition of a TB.
            stated: take percentages of what the document says, where it says something.
        """
        if line.percent_of:
            bases = [self.line(name) for name in line.percent_of]
            base = total([b.stated if stated and b.stated is not None else self.amount(b, gb_of_tb=gb_of_tb) for b in bases])
            return base * line.percent / 100
        return max(self.quantity(line, gb_of_tb) - line.free, Decimal(0)) * line.rate

    def quantity(self, line: Line, gb_of_tb: Decimal | None = None) -> Decimal:
        """The product of a line's quantities, in the unit of its rate."""
        product = Decimal(1)
        for unit, number in line.quantities.items():
            product *= number * ((gb_of_tb or self.gb_of_tb) if unit == "TB" else 1)
        return product

    def budget(self, line: Line) -> Decimal:
        """What was approved: what the document says, or what comes out where it says nothing."""
        return self.amount(line) if line.stated is None else line.stated

    def effective(self, month: Month) -> list[Line]:
        """The lines that are planned for a month."""
        return [line for line in self.lines if line.is_effective(month)]

    def total(self, month: Month | None = None) -> Decimal:
        """The computed total (of a month's lines)."""
        return total([self.amount(line) for line in (self.lines if month is None else self.effective(month))])

    def line_of(self, service: str, sku: str) -> Line | None:
        """The line that a cost belongs to, or None: the plan lacks it. Contingency is never booked as an actual."""
        lines = [line for line in self.lines if line.kind != "contingency"]
        return next((n for n in lines if sku and sku in n.skus), None) or next((n for n in lines if service in n.services), None)


def load_plan(path: Path | None) -> Plan:
    """The plan book of a file; None means the one that is shipped.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return load_model(Plan, path or PLAN, "plan book", "AKIDB_COST_PLAN")


def load_model(model: type[M], path: Path, what: str, setting: str) -> M:
    """A YAML file as a model.

    Args:
        model: its form.
        path: of the file.
        what: it is, for messages.
        setting: that names another file.

    Raises:
        InputError: it cannot be read, or is not of this form; the message names every place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror}", hint=f"check {setting}") from error
    return read_model(model, text, str(path))


def read_model(model: type[M], text: str, source: str) -> M:
    """YAML as a model.

    Raises:
        InputError: it is no YAML, or not of this form; the message names every place.
    """
    hint = "see docs/costs.md for the fields"
    try:
        data: Any = yaml.safe_load(text)
        return model.model_validate(data)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML: {' '.join(str(error).split())}", hint=hint) from error
    except ValidationError as error:
        told = "; ".join(f"{_place(e['loc'])}{e['msg']}" for e in error.errors())
        raise InputError(f"{source}: {told}", hint=hint) from error


def _place(loc: Iterable[int | str]) -> str:
    parts = [f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in loc]
    return f"{''.join(parts).lstrip('.')}: " if parts else ""
