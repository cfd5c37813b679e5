"""What OCI's own APIs say of usage and limits: to compare with, never to book. The Usage API computes amounts in floats.

UTC midnights and the tenancy's home region only; answers come in pages (`opc-next-page`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any

from akidb_pipelines.costs.plan import Plan
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.oci import signed_in

_MOST_PAGES = 1000


@dataclass(frozen=True)
class UsageTotal:
    """What the Usage API says a service cost in a month."""

    service: str
    currency: str
    amount: Decimal
    """From a float: good to some cents."""


@dataclass(frozen=True)
class LimitUse:
    """What the Limits API says of a quota."""

    quota: str
    used: Decimal
    available: Decimal


class OciUsage:
    """The two APIs, for one tenancy.

    Args:
        settings: how to sign in, and where.
        tenancy: its OCID.
    """

    def __init__(self, settings: Settings, tenancy: str) -> None:
        from oci.limits import LimitsClient
        from oci.usage_api import UsageapiClient

        self._tenancy = tenancy
        self._usage = signed_in(UsageapiClient, settings, "comparing costs", settings.oci_usage_endpoint)
        self._limits = signed_in(LimitsClient, settings, "comparing quotas", settings.oci_limits_endpoint)

    def month(self, month: Month) -> list[UsageTotal]:
        """What each service cost in a month.

        Raises:
            OutsideError: OCI refuses, cannot be reached, or its pages have no end.
        """
        from oci.usage_api.models import RequestSummarizedUsagesDetails

        wanted = RequestSummarizedUsagesDetails(
            tenant_id=self._tenancy,
            time_usage_started=datetime.combine(month.first, time(), UTC),
            time_usage_ended=datetime.combine(month.shift(1).first, time(), UTC),
            granularity="MONTHLY",
            query_type="COST",
            group_by=["service"],
        )
        sums: dict[tuple[str, str], Decimal] = {}
        page: str | None = None
        with _telling("Usage API"):
            for _ in range(_MOST_PAGES):
                answer = self._usage.request_summarized_usages(wanted, **({"page": page} if page else {}))
                for item in answer.data.items:
                    key = (item.service or "", item.currency or "")
                    # Days without usage have no amount; the text of a float is the shortest that means it.
                    sums[key] = sums.get(key, Decimal(0)) + Decimal(str(item.computed_amount or 0))
                page = answer.next_page
                if not page:
                    return [UsageTotal(service, currency, amount) for (service, currency), amount in sorted(sums.items())]
        raise OutsideError(f"Usage API: {_MOST_PAGES} pages and no end", hint="this is OCI's to mend: compare again later")

    def limits(self, plan: Plan) -> Iterator[LimitUse]:
        """What is used of the plan's quotas, where OCI has a limit of that name.

        Raises:
            OutsideError: OCI refuses, or cannot be reached.
        """
        for quota in plan.quotas:
            if quota.oci_limit:
                with _telling(f"Limits API, {quota.oci_limit[1]}"):
                    found: Any = self._limits.get_resource_availability(*quota.oci_limit, self._tenancy).data
                    used, available = (found.fractional_usage, found.fractional_availability)
                    yield LimitUse(
                        quota.id,
                        Decimal(str(found.used if used is None else used)),
                        Decimal(str(found.available if available is None else available)),
                    )


@contextmanager
def _telling(what: str) -> Iterator[None]:
    from oci.exceptions import RequestException, ServiceError

    try:
        yield
    except ServiceError as error:
        hint = {
            401: "check ~/.oci/config and this machine's clock",
            404: "allow this user `read usage-report in tenancy` and `inspect resource-availability in tenancy`, in the home region",
        }.get(error.status, "try again later, or look at OCI's status page")
        raise OutsideError(f"{what}: {error.status} {error.code}: {error.message}", hint=hint) from error
    except (RequestException, OSError) as error:
        raise OutsideError(f"{what}: {error}", hint="check the network, and AKIDB_OCI_USAGE_ENDPOINT if it is set") from error
