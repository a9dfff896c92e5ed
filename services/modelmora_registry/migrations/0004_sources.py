"""Links to other registries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def time_column(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "external_link",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("model_id", sa.Uuid, sa.ForeignKey("model.uid", ondelete="CASCADE"), nullable=False),
        sa.Column("registry_type", sa.Text, nullable=False),
        sa.Column("external_id", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.Text(collation="C"), nullable=False),
        sa.Column("imported", sa.Boolean, nullable=False),
        time_column("import_time"),
        time_column("export_time"),
        sa.Column("sync_state", sa.Text, nullable=False),
        sa.Column("sync_reason", sa.Text, nullable=False),
        time_column("check_time"),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        time_column("create_time", nullable=False),
        sa.UniqueConstraint("model_id", "registry_type", "external_id", name="external_link_external_id_key"),
        sa.CheckConstraint("registry_type IN ('huggingface', 'folder')", name="external_link_registry_type_check"),
        sa.CheckConstraint(
            "sync_state IN ('never_synced', 'synced', 'out_of_sync')", name="external_link_sync_state_check"
        ),
    )
    op.create_index("external_link_model_id_idx", "external_link", ["model_id", "create_time", "uid"])


def downgrade() -> None:
    op.drop_table("external_link")
