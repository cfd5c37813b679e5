"""Jetson images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "jetson_images",
        sa.Column("image_id", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(48), nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("root_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("digests_sha256", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(80)),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("board_spec", sa.String(128)),
        sa.Column("l4t_release", sa.String(256)),
        sa.Column("drive_serial", sa.String(128)),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("new_bytes", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("changed_blocks", sa.BigInteger, nullable=False),
        sa.Column("captured_at", sa.String(24), nullable=False),
        sa.UniqueConstraint("name", "period", "revision"),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("jetson_images")
