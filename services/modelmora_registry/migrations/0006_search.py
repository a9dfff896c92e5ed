"""One index for words and labels, so that what both leave out together is told from the index alone."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "model_search_labels_idx",
        "model",
        ["search", "labels"],
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.drop_index("model_search_idx")
    op.drop_index("model_labels_idx")


def downgrade() -> None:
    op.create_index("model_search_idx", "model", ["search"], postgresql_using="gin")
    op.create_index(
        "model_labels_idx", "model", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    )
    op.drop_index("model_search_labels_idx")
