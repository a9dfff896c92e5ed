"""Tunings: which engine profiles of a version were measured on a node, and what came of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tuning",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        # Each profile with its figures, the exact one first.
        sa.Column("candidates", JSONB, nullable=False),
        sa.Column("proposal", JSONB),
        sa.Column("applied", sa.Boolean, nullable=False),
        sa.Column("gate", sa.Float, nullable=False),
        sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("end_time", sa.TIMESTAMP(timezone=True)),
        sa.CheckConstraint("state IN ('running', 'succeeded', 'failed')", name="tuning_state_check"),
    )
    op.create_index("tuning_node_idx", "tuning", ["node", "uid"])
    op.create_index("tuning_version_idx", "tuning", ["node", "model_version", "uid"])


def downgrade() -> None:
    op.drop_table("tuning")
