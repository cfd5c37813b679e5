"""Exact money in a database: NUMERIC(38, 18) in PostgreSQL, canonical text in SQLite, whose NUMERIC is a float.

Sums are taken by whoever reads the rows, never by SQLite.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import Dialect, Numeric, String
from sqlalchemy.types import TypeDecorator, TypeEngine


class Money(TypeDecorator[Decimal]):
    """A Decimal of at most 38 digits, 18 of them after the point."""

    impl = Numeric(38, 18)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type."""
        return dialect.type_descriptor(Numeric(38, 18) if dialect.name == "postgresql" else String(48))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | str | None:
        """As it is stored: without exponent, without trailing zeros."""
        if value is None or dialect.name == "postgresql":
            return value
        text = f"{value:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text in {"", "-0", "-"} else text

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Decimal | None:
        """As it was."""
        return None if value is None else Decimal(value)
