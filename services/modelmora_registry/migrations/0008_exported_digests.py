"""Links remember what their exports put on the other side, so that the next one notices what somebody has changed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("external_link", sa.Column("exported_digests", JSONB, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("external_link", "exported_digests")
