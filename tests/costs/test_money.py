"""Money is exact: what is split adds up again, what is written is read again."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_pipelines.costs.money import exact, places, plain, split, total
from akidb_pipelines.errors import InputError

AMOUNTS = st.decimals(min_value=-(10**15), max_value=10**15, places=18, allow_nan=False, allow_infinity=False)
WEIGHTS = st.lists(st.decimals(min_value=0, max_value=10**6, places=6), min_size=1, max_size=12)


@given(AMOUNTS, WEIGHTS)
def test_parts_add_up_to_the_amount_and_none_is_a_unit_off(amount, weights):
    parts = split(amount, weights)
    assert total(parts) == amount
    unit = Decimal(1).scaleb(-max(2, places(amount)))
    whole = sum(weights) or Decimal(len(weights))
    shares = weights if sum(weights) else [Decimal(1)] * len(weights)
    for part, share in zip(parts, shares, strict=True):
        with localcontext(prec=100):
            assert abs(part - amount * share / whole) <= unit
        assert part == 0 or (part > 0) == (amount > 0)


@given(AMOUNTS)
def test_what_is_written_is_read_again(amount):
    assert exact(plain(amount)) == amount
    assert "E" not in plain(amount)


def test_a_cent_more_goes_to_whoever_comes_first():
    assert split(Decimal("100"), [Decimal(1)] * 3) == [Decimal("33.34"), Decimal("33.33"), Decimal("33.33")]
    assert split(Decimal("-0.05"), [Decimal(1)] * 2) == [Decimal("-0.03"), Decimal("-0.02")]


@pytest.mark.parametrize("text", ["1.0000000000000000001", "123456789012345678901", "NaN", "1,5", "", "Infinity"])
def test_what_cannot_be_kept_exactly_is_refused(text):
    with pytest.raises(InputError, match=r"amount of money|decimal places"):
        exact(text)


@pytest.mark.parametrize(
    ("written", "canonical"), [("-0.00", "0"), ("1E+3", "1000"), ("0.10", "0.1"), ("1E-18", "0.000000000000000001")]
)
def test_amounts_have_one_spelling(written, canonical):
    assert plain(Decimal(written)) == canonical
