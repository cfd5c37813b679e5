"""Exact money: reading it, writing it, splitting it without losing or inventing a unit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation, localcontext

from akidb_pipelines.errors import InputError

PLACES = 18
"""Decimal places that are kept; a number with more is refused, never rounded."""
DIGITS = 38
CENT = Decimal("0.01")
_EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)


def exact(text: str) -> Decimal:
    """Read money as written.

    Raises:
        InputError: it is no number, or has more digits than are kept.
    """
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        raise InputError(f"{text!r} is no amount of money", hint="write digits with a point, such as 12.50") from None
    if not value.is_finite() or places(value) > PLACES or value.adjusted() >= DIGITS - PLACES:
        raise InputError(f"{text!r} has more than {PLACES} decimal places or {DIGITS - PLACES} digits", hint="see docs/costs.md")
    return value


def places(value: Decimal) -> int:
    """Decimal places that matter: trailing zeros do not."""
    exponent = value.normalize(_EXACT).as_tuple().exponent
    assert isinstance(exponent, int)  # finite numbers only
    return max(0, -exponent)


def plain(value: Decimal) -> str:
    """Canonical text: no exponent, no trailing zeros, no minus before zero."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"", "-0", "-"} else text


def cents(value: Decimal) -> Decimal:
    """Rounded to cents, half to even: for people to read, never for adding up."""
    return value.quantize(CENT, rounding=ROUND_HALF_EVEN, context=_EXACT)


def total(values: Sequence[Decimal]) -> Decimal:
    """The sum, however many digits it takes."""
    with localcontext(_EXACT):
        return sum(values, Decimal(0))


def split(amount: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Split an amount in proportion to weights, by largest remainder: the parts add up to it exactly, and none is a unit off.

    A unit is a cent, or the last place of the amount where that is finer. Without any weight the split is even.

    Args:
        amount: may be negative: a credit.
        weights: none negative, at least one.

    Raises:
        ValueError: a weight is negative, or there is none.
    """
    if not weights or any(w < 0 for w in weights):
        raise ValueError("weights: at least one, none negative")
    with localcontext(_EXACT):
        whole = sum(weights, Decimal(0))
        shares = list(weights) if whole else [Decimal(1)] * len(weights)
        whole = whole or Decimal(len(weights))
        unit = Decimal(1).scaleb(-max(2, places(amount)))
        units = int((abs(amount) / unit).to_integral_value())
        ideal = [Decimal(units) * s / whole for s in shares]
        floors = [int(i) for i in ideal]
        # Ties go to whoever comes first, so that the same input always splits the same way.
        order = sorted(range(len(shares)), key=lambda n: (floors[n] - ideal[n], n))
        for n in order[: units - sum(floors)]:
            floors[n] += 1
        sign = -1 if amount < 0 else 1
        return [sign * f * unit for f in floors]
