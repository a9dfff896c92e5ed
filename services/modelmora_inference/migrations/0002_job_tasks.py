"""Jobs of other tasks than embedding, and what they cost in all."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Jobs that are there embed, and a process of the release before makes no others.
    op.add_column("job", sa.Column("task", sa.Text, nullable=False, server_default="embed"))
    op.add_column("job", sa.Column("compute_nanos", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("job", "compute_nanos")
    op.drop_column("job", "task")
