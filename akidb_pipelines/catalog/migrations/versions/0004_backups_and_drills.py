"""Dumps of databases, and drills."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "backups",
        sa.Column("backup_id", sa.String(96), primary_key=True),
        sa.Column("database", sa.String(63), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("record_sha256", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("row_count", sa.BigInteger, nullable=False),
        sa.Column("canary", sa.BigInteger),
        sa.Column("snapshot_at", sa.String(24), nullable=False),
        sa.UniqueConstraint("database", "day", "revision"),
    )
    op.create_table(
        "drill_reports",
        sa.Column("drill_id", sa.String(64), primary_key=True),
        sa.Column("quarter", sa.String(7), nullable=False),
        sa.Column("scenario", sa.String(32), nullable=False),
        sa.Column("target", sa.String(8), nullable=False),
        sa.Column("verdict", sa.String(8), nullable=False),
        sa.Column("operator", sa.String(128), nullable=False),
        sa.Column("dry_run", sa.Boolean, nullable=False),
        sa.Column("rto_target_s", sa.BigInteger, nullable=False),
        sa.Column("rpo_target_s", sa.BigInteger, nullable=False),
        sa.Column("rta_ms", sa.BigInteger),
        sa.Column("rpa_ms", sa.BigInteger),
        sa.Column("outage_ms", sa.BigInteger),
        sa.Column("rows_lost", sa.BigInteger),
        sa.Column("backup_id", sa.String(96)),
        sa.Column("report_sha256", sa.String(64), nullable=False),
        sa.Column("started_at", sa.String(24), nullable=False),
        sa.Column("finished_at", sa.String(24), nullable=False),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("drill_reports")
    op.drop_table("backups")
