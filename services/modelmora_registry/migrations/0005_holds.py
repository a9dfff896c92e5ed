"""Holds that outlast their streams: which process has them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hold", sa.Column("process", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("hold", "process")
