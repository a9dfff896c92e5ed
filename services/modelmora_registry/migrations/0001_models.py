"""Models, versions, their files, aliases with history, used version strings, idempotency keys, holds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TASKS = (
    "txt2embed",
    "txt2txt",
    "classification",
    "reranking",
    "question_answering",
    "img2txt",
    "img2embed",
    "txt2img",
    "img2img",
    "audio2txt",
    "txt2audio",
    "object_detection",
    "tabular_classification",
    "tabular_regression",
)
STATES = ("creating", "ready", "failed")


def one_of(column: str, words: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


def time_column(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "model",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text(collation="C"), nullable=False, unique=True),
        sa.Column("display_name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        time_column("create_time"),
        time_column("update_time"),
        sa.CheckConstraint(one_of("task_type", TASKS), name="model_task_type_check"),
    )
    op.create_index("model_task_type_idx", "model", ["task_type", "name"])
    op.create_index("model_create_time_idx", "model", ["create_time", "uid"])
    op.create_index("model_update_time_idx", "model", ["update_time", "uid"])
    op.create_index(
        "model_labels_idx", "model", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    )

    op.create_table(
        "model_version",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("model_id", sa.Uuid, sa.ForeignKey("model.uid", ondelete="CASCADE"), nullable=False),
        sa.Column("version", sa.Text(collation="C"), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("engine_options", JSONB),
        sa.Column("source", JSONB, nullable=False),
        sa.Column("digest", sa.Text),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("resource_requirements", JSONB),
        sa.Column("engine_profile", JSONB),
        sa.Column("limits", JSONB),
        sa.Column("progress", JSONB),
        sa.Column("failure", JSONB),
        sa.Column("expected_checksums", JSONB, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        time_column("create_time"),
        time_column("update_time"),
        sa.UniqueConstraint("model_id", "version", name="model_version_model_id_version_key"),
        sa.CheckConstraint(one_of("state", STATES), name="model_version_state_check"),
        sa.CheckConstraint(one_of("task_type", TASKS), name="model_version_task_type_check"),
        sa.CheckConstraint("state <> 'ready' OR digest IS NOT NULL", name="model_version_ready_check"),
        sa.CheckConstraint("(state = 'failed') = (failure IS NOT NULL)", name="model_version_failure_check"),
    )
    op.create_index("model_version_model_id_create_time_idx", "model_version", ["model_id", "create_time", "uid"])
    op.create_index("model_version_task_type_idx", "model_version", ["task_type", "state"])
    op.create_index("model_version_state_idx", "model_version", ["state", "uid"])
    op.create_index("model_version_create_time_idx", "model_version", ["create_time", "uid"])
    op.create_index("model_version_digest_idx", "model_version", ["digest"])

    op.create_table(
        "artifact_file",
        sa.Column(
            "model_version_id", sa.Uuid, sa.ForeignKey("model_version.uid", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("path", sa.Text(collation="C"), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
    )
    op.create_index("artifact_file_sha256_idx", "artifact_file", ["sha256"])

    op.create_table(
        "alias",
        sa.Column("model_id", sa.Uuid, sa.ForeignKey("model.uid", ondelete="CASCADE"), primary_key=True),
        sa.Column("alias", sa.Text(collation="C"), primary_key=True),
        sa.Column("model_version_id", sa.Uuid, sa.ForeignKey("model_version.uid"), nullable=False),
        time_column("update_time"),
    )
    op.create_index("alias_model_version_id_idx", "alias", ["model_version_id"])

    # History outlives what it tells of, so it refers by name.
    op.create_table(
        "alias_history",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("model_name", sa.Text(collation="C"), nullable=False),
        sa.Column("alias", sa.Text(collation="C"), nullable=False),
        sa.Column("from_version", sa.Text),
        sa.Column("to_version", sa.Text),
        sa.Column("subject", sa.Text, nullable=False),
        time_column("create_time"),
    )
    op.create_index("alias_history_model_name_idx", "alias_history", ["model_name", "alias", "uid"])

    op.create_table(
        "used_version",
        sa.Column("model_name", sa.Text(collation="C"), primary_key=True),
        sa.Column("version", sa.Text(collation="C"), primary_key=True),
        sa.Column("model_version_id", sa.Uuid, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        time_column("create_time"),
        time_column("delete_time", nullable=True),
    )

    op.create_table(
        "create_request",
        sa.Column("request_id", sa.Uuid, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("resource_id", sa.Uuid, nullable=False),
        time_column("create_time"),
    )
    op.create_index("create_request_create_time_idx", "create_request", ["create_time"])

    op.create_table(
        "hold",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("model_version_id", sa.Uuid, sa.ForeignKey("model_version.uid"), nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        time_column("create_time"),
        time_column("expire_time"),
    )
    op.create_index("hold_model_version_id_idx", "hold", ["model_version_id", "expire_time"])


def downgrade() -> None:
    for table in (
        "hold",
        "create_request",
        "used_version",
        "alias_history",
        "alias",
        "artifact_file",
        "model_version",
        "model",
    ):
        op.drop_table(table)
