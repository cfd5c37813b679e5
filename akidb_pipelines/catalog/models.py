"""Tables of the catalog. Migrations in `migrations/` make them; this module only describes them."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import BigInteger, Boolean, Float, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from akidb_pipelines.catalog.money import Money


class Base(DeclarativeBase):
    """Base of all tables."""


class FixtureReleaseRow(Base):
    """One published revision; the row behind AkiDB::Ops::FixtureRelease."""

    __tablename__ = "fixture_releases"
    __table_args__ = (UniqueConstraint("week", "revision"),)

    release_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    week: Mapped[str] = mapped_column(String(8))
    revision: Mapped[int] = mapped_column(Integer)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    cedar_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    profiles: Mapped[str] = mapped_column(Text)
    """JSON array."""
    published_at: Mapped[str] = mapped_column(String(24))
    """RFC 3339, milliseconds, Z."""


class JetsonImageRow(Base):
    """One captured image; the row behind AkiDB::Ops::JetsonImage."""

    __tablename__ = "jetson_images"
    __table_args__ = (UniqueConstraint("name", "period", "revision"),)

    image_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(48))
    period: Mapped[str] = mapped_column(String(7))
    revision: Mapped[int] = mapped_column(Integer)
    root_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    digests_sha256: Mapped[str] = mapped_column(String(64))
    parent_id: Mapped[str | None] = mapped_column(String(80))
    mode: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(12))
    board_spec: Mapped[str | None] = mapped_column(String(128))
    l4t_release: Mapped[str | None] = mapped_column(String(256))
    drive_serial: Mapped[str | None] = mapped_column(String(128))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    new_bytes: Mapped[int] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    changed_blocks: Mapped[int] = mapped_column(BigInteger)
    captured_at: Mapped[str] = mapped_column(String(24))
    """RFC 3339, milliseconds, Z."""


class RunnerImageRow(Base):
    """One archived snapshot of a runner image; the row behind AkiDB::Ops::RunnerImage."""

    __tablename__ = "runner_images"
    __table_args__ = (UniqueConstraint("runner", "week", "revision"),)

    snapshot_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    runner: Mapped[str] = mapped_column(String(48))
    week: Mapped[str] = mapped_column(String(8))
    revision: Mapped[int] = mapped_column(Integer)
    root_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    digests_sha256: Mapped[str] = mapped_column(String(64))
    template_sha256: Mapped[str] = mapped_column(String(64))
    builder: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(12))
    image_id: Mapped[str] = mapped_column(String(160))
    architecture: Mapped[str] = mapped_column(String(16))
    tools: Mapped[str] = mapped_column(Text)
    """JSON array of `name=version`."""
    built_on: Mapped[str | None] = mapped_column(String(80))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    new_bytes: Mapped[int] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    archived_at: Mapped[str] = mapped_column(String(24))
    """RFC 3339, milliseconds, Z."""


class BackupRow(Base):
    """One dump of a database; the row behind AkiDB::Ops::Backup."""

    __tablename__ = "backups"
    __table_args__ = (UniqueConstraint("database", "day", "revision"),)

    backup_id: Mapped[str] = mapped_column(String(96), primary_key=True)
    database: Mapped[str] = mapped_column(String(63))
    day: Mapped[str] = mapped_column(String(10))
    revision: Mapped[int] = mapped_column(Integer)
    record_sha256: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    row_count: Mapped[int] = mapped_column(BigInteger)
    canary: Mapped[int | None] = mapped_column(BigInteger)
    snapshot_at: Mapped[str] = mapped_column(String(24))
    """RFC 3339, milliseconds, Z."""


class DrillReportRow(Base):
    """What came of one drill; the row behind AkiDB::Ops::DrillReport."""

    __tablename__ = "drill_reports"

    drill_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    quarter: Mapped[str] = mapped_column(String(7))
    scenario: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(8))
    verdict: Mapped[str] = mapped_column(String(8))
    operator: Mapped[str] = mapped_column(String(128))
    dry_run: Mapped[bool] = mapped_column(Boolean)
    rto_target_s: Mapped[int] = mapped_column(BigInteger)
    rpo_target_s: Mapped[int] = mapped_column(BigInteger)
    rta_ms: Mapped[int | None] = mapped_column(BigInteger)
    rpa_ms: Mapped[int | None] = mapped_column(BigInteger)
    outage_ms: Mapped[int | None] = mapped_column(BigInteger)
    rows_lost: Mapped[int | None] = mapped_column(BigInteger)
    backup_id: Mapped[str | None] = mapped_column(String(96))
    report_sha256: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[str] = mapped_column(String(24))
    finished_at: Mapped[str] = mapped_column(String(24))


class CostFileRow(Base):
    """One billing file that arrived, and what became of it. Rows are never removed: this is the ledger."""

    __tablename__ = "cost_files"

    source: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    etag: Mapped[str] = mapped_column(Text, primary_key=True)
    sample: Mapped[bool] = mapped_column(Boolean)
    """Made up by the lab; never added to what is real."""
    state: Mapped[str] = mapped_column(String(12))
    arrived: Mapped[str] = mapped_column(String(10))
    """Day."""
    imported_at: Mapped[str] = mapped_column(String(24))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    lines_sha256: Mapped[str] = mapped_column(String(64))
    lines_bytes: Mapped[int] = mapped_column(BigInteger)
    line_count: Mapped[int] = mapped_column(BigInteger)
    billed: Mapped[Decimal] = mapped_column(Money)
    effective: Mapped[Decimal] = mapped_column(Money)
    months: Mapped[str] = mapped_column(Text)
    """JSON array."""
    billed_for_effective: Mapped[str] = mapped_column(Text)
    """JSON array of providers."""
    notes: Mapped[str] = mapped_column(Text)
    """JSON array: why it was refused, or what is odd about it."""


class CostMonthRow(Base):
    """One version of a billing month. Version 1 is replaced while the month is open; later ones hold differences, and stay."""

    __tablename__ = "cost_months"

    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    sample: Mapped[bool] = mapped_column(Boolean, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    closed: Mapped[bool] = mapped_column(Boolean)
    files_sha256: Mapped[str] = mapped_column(String(64))
    """Digest of the digests of every file that went in."""
    line_count: Mapped[int] = mapped_column(BigInteger)
    rolled_at: Mapped[str] = mapped_column(String(24))


class CostRollupRow(Base):
    """One cell of a version of a month; the row behind AkiDB::Ops::CostRollup. A cell of a month is the sum of its versions."""

    __tablename__ = "cost_rollups"

    rollup_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), index=True)
    sample: Mapped[bool] = mapped_column(Boolean)
    version: Mapped[int] = mapped_column(Integer)
    provider: Mapped[str] = mapped_column(Text)
    service: Mapped[str] = mapped_column(Text)
    sku: Mapped[str] = mapped_column(Text)
    team: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(Text)
    environment: Mapped[str] = mapped_column(Text)
    currency: Mapped[str] = mapped_column(String(3))
    unit: Mapped[str] = mapped_column(Text)
    line_count: Mapped[int] = mapped_column(BigInteger)
    billed: Mapped[Decimal] = mapped_column(Money)
    effective: Mapped[Decimal] = mapped_column(Money)
    quantity: Mapped[Decimal] = mapped_column(Money)


class CheckRow(Base):
    """The newest outcome of one check on one build."""

    __tablename__ = "check_results"

    build_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    check: Mapped[str] = mapped_column(String(64), primary_key=True)
    passed: Mapped[bool] = mapped_column(Boolean)
    blocking: Mapped[bool] = mapped_column(Boolean)
    """Whether a release had to wait for it."""
    rules: Mapped[int] = mapped_column(Integer)
    summary: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(Float)
    checked_at: Mapped[str] = mapped_column(String(24))


class FindingRow(Base):
    """A drift finding, kept from the week it was first seen to the week it was last seen."""

    __tablename__ = "findings"

    key: Mapped[str] = mapped_column(String(512), primary_key=True)
    severity: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    expected: Mapped[str] = mapped_column(Text)
    found: Mapped[str] = mapped_column(Text)
    affected_rows: Mapped[int] = mapped_column(BigInteger)
    affected_policies: Mapped[str] = mapped_column(Text)
    """Comma-separated."""
    suggestion: Mapped[str] = mapped_column(Text)
    first_week: Mapped[str] = mapped_column(String(8))
    last_week: Mapped[str] = mapped_column(String(8))
