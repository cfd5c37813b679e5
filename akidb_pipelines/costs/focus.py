"""The columns of FOCUS, under whatever version's name a file has them. Pure.

OCI still writes the names of 1.0-preview (`Provider`, `UsageQuantity`), 1.4 renamed `ProviderName`, and own columns come with and without
`x_`: a file is read by its header, never by its version. Names are compared without regard to case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from akidb_pipelines.errors import InputError

ALIASES: dict[str, tuple[str, ...]] = {
    "Provider": ("ServiceProviderName", "ProviderName", "Provider"),
    "ConsumedQuantity": ("ConsumedQuantity", "UsageQuantity"),
    "ConsumedUnit": ("ConsumedUnit", "UsageUnit"),
    "ChargeClass": ("ChargeClass", "ChargeSubcategory"),
}
"""What we call a column, and what versions call it, the newest first: a file may have the old name beside the new one."""

EXACT = ("BilledCost", "EffectiveCost")
"""What is added up: not a digit of it may be lost."""
PRICES = ("ListUnitPrice", "ContractedUnitPrice")
"""What is only compared with: one that is no number is left out."""
NUMBERS = (*EXACT, "ListCost", "ContractedCost", *PRICES, "PricingQuantity", "ConsumedQuantity")
TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
TEXTS = (
    "Provider",
    "ServiceName",
    "SkuId",
    "BillingAccountId",
    "BillingCurrency",
    "ChargeCategory",
    "ChargeClass",
    "PricingUnit",
    "ConsumedUnit",
    "ResourceId",
    "SubAccountName",
    "Tags",
)
OCI = ("oci_ReferenceNumber", "oci_CompartmentName", "oci_BackReferenceNumber")
"""OCI's own; newer files write `x_oci_...`."""
KEPT = (*NUMBERS, *TIMES, *TEXTS, *OCI)
"""The columns that become Parquet: half of a file's, and half of the time. The file itself is kept beside, with all of them."""
REQUIRED = (
    "Provider",
    "ServiceName",
    "BilledCost",
    "EffectiveCost",
    "BillingCurrency",
    "BillingPeriodStart",
    "ChargePeriodStart",
    "ChargeCategory",
)
"""Mandatory in every version of FOCUS, and needed here."""
WANTED = ("Tags", "SkuId", "ConsumedQuantity", "ConsumedUnit")
"""What a file may lack, though somebody will miss it."""
LAB_ACCOUNT = "ocid1.tenancy.oc1..lab"
"""The BillingAccountId of whatever the lab makes up: wherever such a file goes, it is known for what it is."""
FILLED = ("Provider", "ServiceName", "BilledCost", "BillingCurrency", "BillingPeriodStart", "ChargePeriodStart")
"""What no row may leave empty: without them a row's money has no place. A missing EffectiveCost is its BilledCost."""

# Columns that are known and not made use of: no news when they appear. Compared without regard to case, and without `x_`.
_KNOWN_OTHERS = frozenset(
    [
        "allocatedmethoddetails",
        "allocatedmethodid",
        "allocatedresourceid",
        "allocatedresourcename",
        "allocatedtags",
        "availabilityzone",
        "billingaccountname",
        "billingaccounttype",
        "capacityreservationid",
        "capacityreservationstatus",
        "chargedescription",
        "chargefrequency",
        "commitmentdiscountcategory",
        "commitmentdiscountid",
        "commitmentdiscountname",
        "commitmentdiscountquantity",
        "commitmentdiscountstatus",
        "commitmentdiscounttype",
        "commitmentdiscountunit",
        "commitmentprogrameligibilitydetails",
        "contractapplied",
        "hostprovidername",
        "invoicedetailid",
        "invoiceid",
        "invoiceissuer",
        "invoiceissuername",
        "oci_attributedcost",
        "oci_attributedusage",
        "oci_billedquantityoverage",
        "oci_compartmentid",
        "oci_costoverage",
        "oci_overageflag",
        "oci_unitpriceoverage",
        "pricingcategory",
        "pricingcurrency",
        "pricingcurrencycontractedunitprice",
        "pricingcurrencyeffectivecost",
        "pricingcurrencylistunitprice",
        "publisher",
        "publishername",
        "region",
        "regionid",
        "regionname",
        "resourcename",
        "resourcetype",
        "servicecategory",
        "servicesubcategory",
        "skumeter",
        "skupricedetails",
        "skupriceid",
        "subaccountid",
        "subaccounttype",
    ]
)


@dataclass(frozen=True)
class Header:
    """How a file's columns are read."""

    names: tuple[str, ...]
    """As they stand in the file."""
    sources: dict[str, tuple[int, ...]]
    """Column of ours -> positions of its sources, the newest name first."""
    extra: tuple[str, ...]
    """Columns that no version of FOCUS has and that are none of OCI's."""


def read_header(names: Sequence[str], source: str) -> Header:
    """Find our columns in a header.

    Raises:
        InputError: it is none of a FOCUS file: a column is missing or occurs twice; the message names it.
    """
    known = {alias.lower(): (name, rank) for name in KEPT for rank, alias in enumerate(ALIASES.get(name, (name,)))}
    found: dict[str, dict[int, int]] = {}
    extra: list[str] = []
    seen: dict[str, str] = {}
    for position, name in enumerate(names):
        plain = name.strip().lower()
        if not plain:
            raise InputError(f"{source}: column {position + 1} has no name", hint="is this the file that the provider wrote?")
        if plain in seen:
            raise InputError(f"{source}: column {name} occurs twice", hint="is this the file that the provider wrote?")
        seen[plain] = name
        place = known.get(plain) or known.get(plain.removeprefix("x_"))
        if place:
            found.setdefault(place[0], {})[place[1]] = position
        elif plain.removeprefix("x_") not in _KNOWN_OTHERS:
            extra.append(name)
    if missing := [name for name in REQUIRED if name not in found]:
        spelled = ", ".join(" or ".join(ALIASES.get(name, (name,))) for name in missing)
        raise InputError(f"{source} lacks the column {spelled}", hint="this is no FOCUS file, or its export leaves columns out")
    sources = {name: tuple(by_rank[r] for r in sorted(by_rank)) for name, by_rank in found.items()}
    return Header(tuple(names), sources, tuple(extra))
