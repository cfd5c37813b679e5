"""Snapshots of runner images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "runner_images",
        sa.Column("snapshot_id", sa.String(80), primary_key=True),
        sa.Column("runner", sa.String(48), nullable=False),
        sa.Column("week", sa.String(8), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("root_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("digests_sha256", sa.String(64), nullable=False),
        sa.Column("template_sha256", sa.String(64), nullable=False),
        sa.Column("builder", sa.String(8), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("image_id", sa.String(160), nullable=False),
        sa.Column("architecture", sa.String(16), nullable=False),
        sa.Column("tools", sa.Text, nullable=False),
        sa.Column("built_on", sa.String(80)),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("new_bytes", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("archived_at", sa.String(24), nullable=False),
        sa.UniqueConstraint("runner", "week", "revision"),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("runner_images")
