"""A ledger of a home of its own, and FOCUS files made of a few cells."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from akidb_pipelines.costs.ledger import Imported, Ledger, open_ledger
from akidb_pipelines.costs.sources import Folder

TODAY = date(2026, 11, 26)
DEFAULTS = {
    "ProviderName": "Oracle",
    "ServiceName": "COMPUTE",
    "BilledCost": "1.5",
    "EffectiveCost": "1.25",
    "ListCost": "1.5",
    "ContractedCost": "1.25",
    "BillingCurrency": "USD",
    "BillingPeriodStart": "2026-10-01T00:00:00Z",
    "BillingPeriodEnd": "2026-11-01T00:00:00Z",
    "ChargePeriodStart": "2026-10-05T01:00:00Z",
    "ChargePeriodEnd": "2026-10-05T02:00:00Z",
    "ChargeCategory": "Usage",
    "ConsumedQuantity": "4",
    "ConsumedUnit": "OCPU-hour",
    "SkuId": "B93297",
    "SubAccountName": "staging",
    "Tags": '{"akidb.team": "qa"}',
}


def focus(rows: Iterable[dict[str, str]], *, drop: tuple[str, ...] = (), ending: str = "\n") -> str:
    """A FOCUS file: each row is what differs from DEFAULTS."""
    rows = [{**DEFAULTS, **row} for row in rows]
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in drop]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@dataclass
class Desk:
    """A ledger and a folder that billing files are put into."""

    ledger: Ledger
    folder: Path
    today: date = field(default=TODAY)

    def put(self, name: str, content: str | bytes | Iterable[dict[str, str]], **options: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = focus(content, **options)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") and data[:2] != b"\x1f\x8b" else data)
        return path

    def take_in(self, *, sample: bool = False) -> list[Imported]:
        return list(self.ledger.take_in(Folder(self.folder, sample=sample), today=self.today))


@pytest.fixture
def desk(settings, tmp_path) -> Desk:
    folder = tmp_path / "bill"
    folder.mkdir()
    return Desk(open_ledger(settings.model_copy(update={"cost_source": str(folder)})), folder)


@pytest.fixture
def read(tmp_path) -> Callable[..., object]:
    """Reads one file as the intake does, without a ledger."""
    from akidb_pipelines.costs.intake import read_focus

    def of(content: str | bytes | Iterable[dict[str, str]], name: str = "bill.csv", **options: object) -> object:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        if not isinstance(content, str | bytes):
            content = focus(content, **options)
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_focus(path, name, tmp_path / "lines.parquet", scratch)

    return of
