"""The price book: what no cloud bills (our own machines, hours), turned into billing lines of FOCUS, a day at a time."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from akidb_pipelines.costs.money import plain, split
from akidb_pipelines.costs.plan import SHIPPED, Number, load_model
from akidb_pipelines.periods import Month

BOOK = SHIPPED / "price-book.yaml"
PROVIDER = "AkiDB on premises"
_COLUMNS = [
    "BilledCost",
    "EffectiveCost",
    "ListCost",
    "ContractedCost",
    "ListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "BillingCurrency",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ChargeCategory",
    "ProviderName",
    "ServiceName",
    "SkuId",
]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Tier(_Strict):
    rate: Number
    up_to: Number | None = None
    """Of the month's quantity; the last tier has none."""


class _Price(_Strict):
    from_: date = Field(alias="from")
    quantity: Number
    """A month."""
    tiers: tuple[_Tier, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascending(self) -> _Price:
        bounds = [t.up_to for t in self.tiers]
        if bounds[-1] is not None or None in bounds[:-1] or sorted(b for b in bounds if b is not None) != bounds[:-1]:
            raise ValueError("tiers ascend by up_to, and the last has none")
        return self

    @property
    def amount(self) -> Decimal:
        """What a month costs."""
        done, cost = Decimal(0), Decimal(0)
        for tier in self.tiers:
            end = self.quantity if tier.up_to is None else min(tier.up_to, self.quantity)
            cost += max(end - done, Decimal(0)) * tier.rate
            done = max(done, end)
        return cost


class Item(_Strict):
    """Something that costs money every month."""

    service: str
    sku: str
    unit: str
    prices: tuple[_Price, ...] = Field(min_length=1)

    @field_validator("prices")
    @classmethod
    def _in_order(cls, prices: tuple[_Price, ...]) -> tuple[_Price, ...]:
        if sorted(p.from_ for p in prices) != [p.from_ for p in prices]:
            raise ValueError("prices stand in the order of their dates")
        return prices

    def price(self, day: date) -> _Price | None:
        """The price of a day, or None before the first."""
        return next((p for p in reversed(self.prices) if p.from_ <= day), None)


class Invoice(_Strict):
    """What a provider's invoice of a month says."""

    provider: str
    month: Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]
    amount: Number


class PriceBook(_Strict):
    """A price book."""

    format: Literal[1]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    items: tuple[Item, ...] = ()
    invoices: tuple[Invoice, ...] = ()


def load_price_book(path: Path | None) -> PriceBook:
    """The price book of a file; None means the one that is shipped.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return load_model(PriceBook, path or BOOK, "price book", "AKIDB_COST_PRICE_BOOK")


def focus_csv(book: PriceBook, month: Month, until: date) -> bytes:
    """A month's lines up to a day, as a FOCUS file: each item's month split over its days so that they add up to it exactly.

    Args:
        book: the prices.
        month: the billing month.
        until: the last day that is billed; later days have not happened.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    days = [month.first + timedelta(days=n) for n in range(month.days)]
    for item in book.items:
        for n, day in enumerate(days):
            price = item.price(day)
            if price is None or day > until:
                continue
            cost = split(price.amount, [Decimal(1)] * month.days)[n]
            quantity = split(price.quantity, [Decimal(1)] * month.days)[n]
            # No unit price: a day's share of a month that is split to the cent is not price times quantity.
            writer.writerow(
                [plain(cost)] * 3
                + ["", "", plain(quantity), item.unit, plain(quantity), item.unit, book.currency]
                + [
                    f"{month.first}T00:00:00Z",
                    f"{month.shift(1).first}T00:00:00Z",
                    f"{day}T00:00:00Z",
                    f"{day + timedelta(days=1)}T00:00:00Z",
                ]
                + ["Usage", PROVIDER, item.service, item.sku]
            )
    return out.getvalue().encode()
