"""Fixture releases, check results, findings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "fixture_releases",
        sa.Column("release_id", sa.String(32), primary_key=True),
        sa.Column("week", sa.String(8), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("cedar_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("profiles", sa.Text, nullable=False),
        sa.Column("published_at", sa.String(24), nullable=False),
        sa.UniqueConstraint("week", "revision"),
    )
    op.create_table(
        "check_results",
        sa.Column("build_sha256", sa.String(64), primary_key=True),
        sa.Column("check", sa.String(64), primary_key=True),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("blocking", sa.Boolean, nullable=False),
        sa.Column("rules", sa.Integer, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("checked_at", sa.String(24), nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("key", sa.String(512), primary_key=True),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("expected", sa.Text, nullable=False),
        sa.Column("found", sa.Text, nullable=False),
        sa.Column("affected_rows", sa.BigInteger, nullable=False),
        sa.Column("affected_policies", sa.Text, nullable=False),
        sa.Column("suggestion", sa.Text, nullable=False),
        sa.Column("first_week", sa.String(8), nullable=False),
        sa.Column("last_week", sa.String(8), nullable=False),
    )


def downgrade() -> None:
    """Undo."""
    for table in ("findings", "check_results", "fixture_releases"):
        op.drop_table(table)
