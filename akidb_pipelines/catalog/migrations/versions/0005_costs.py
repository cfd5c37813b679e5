"""Billing files and cost rollups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from akidb_pipelines.catalog.money import Money

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "cost_files",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("etag", sa.Text, primary_key=True),
        sa.Column("sample", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("arrived", sa.String(10), nullable=False),
        sa.Column("imported_at", sa.String(24), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("lines_sha256", sa.String(64), nullable=False),
        sa.Column("lines_bytes", sa.BigInteger, nullable=False),
        sa.Column("line_count", sa.BigInteger, nullable=False),
        sa.Column("billed", Money, nullable=False),
        sa.Column("effective", Money, nullable=False),
        sa.Column("months", sa.Text, nullable=False),
        sa.Column("billed_for_effective", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
    )
    op.create_table(
        "cost_months",
        sa.Column("month", sa.String(7), primary_key=True),
        sa.Column("sample", sa.Boolean, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("files_sha256", sa.String(64), nullable=False),
        sa.Column("line_count", sa.BigInteger, nullable=False),
        sa.Column("rolled_at", sa.String(24), nullable=False),
    )
    op.create_table(
        "cost_rollups",
        sa.Column("rollup_id", sa.String(64), primary_key=True),
        sa.Column("month", sa.String(7), nullable=False, index=True),
        sa.Column("sample", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("line_count", sa.BigInteger, nullable=False),
        sa.Column("billed", Money, nullable=False),
        sa.Column("effective", Money, nullable=False),
        sa.Column("quantity", Money, nullable=False),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("cost_rollups")
    op.drop_table("cost_months")
    op.drop_table("cost_files")
