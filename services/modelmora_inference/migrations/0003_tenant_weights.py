"""Weights of tenants that were set while running."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant_weight",
        sa.Column("tenant", sa.Text(collation="C"), primary_key=True),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("weight > 0", name="tenant_weight_weight_check"),
    )


def downgrade() -> None:
    op.drop_table("tenant_weight")
