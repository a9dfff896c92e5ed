"""Eviction decisions with their inputs, and what each version took when it was loaded."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "eviction_decision",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        # Replica uids in the order in which they go.
        sa.Column("victims", JSONB, nullable=False),
        # Need, room, budget and every candidate: enough to decide again.
        sa.Column("inputs", JSONB, nullable=False),
        sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("outcome IN ('plan', 'wait', 'impossible')", name="eviction_decision_outcome_check"),
    )
    op.create_index("eviction_decision_version_idx", "eviction_decision", ["model_version", "create_time"])
    op.create_index("eviction_decision_node_idx", "eviction_decision", ["node", "uid"])

    op.create_table(
        "measurement",
        sa.Column("node", sa.String(255), primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("engine", sa.Text, nullable=False),
        # Highest bytes by device.
        sa.Column("memory", JSONB, nullable=False),
        sa.Column("load_seconds", sa.Float, nullable=False),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    op.drop_table("measurement")
    op.drop_table("eviction_decision")
