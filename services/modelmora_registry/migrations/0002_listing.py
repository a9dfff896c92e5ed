"""What files tell and people say of models and versions, full-text search, indexes for lists, the audit record.

`alias_history` and `audit_entry` are append-only: a trigger refuses UPDATE, DELETE and TRUNCATE. Only a transaction
that says `SET LOCAL modelmora.retention = 'on'` may delete, and only audit entries.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Names are split where people see words; the English stems find "embedding" in "embeddings", the plain words find
# names that English would drop ("all").
_NAME_WORDS = "translate(name, '/_.-', '    ')"
SEARCH = f"""
setweight(to_tsvector('simple'::regconfig, {_NAME_WORDS}), 'A')
|| setweight(to_tsvector('english'::regconfig, {_NAME_WORDS} || ' ' || display_name), 'A')
|| setweight(to_tsvector('english'::regconfig, coalesce(given_family, read_family, '')), 'B')
|| setweight(to_tsvector('english'::regconfig, description), 'C')
"""

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'audit_entry'
        AND current_setting('modelmora.retention', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$
"""
GUARDED = ("alias_history", "audit_entry")


def upgrade() -> None:
    # What somebody said stands beside what the files told, so that taking it back shows the files' word again.
    op.add_column("model", sa.Column("given_family", sa.Text))
    op.add_column("model", sa.Column("read_family", sa.Text))
    shown = sa.Computed("coalesce(given_family, read_family)", persisted=True)
    op.add_column("model", sa.Column("family", sa.Text, shown))
    op.add_column("model", sa.Column("base_model", sa.Text(collation="C")))
    op.add_column("model", sa.Column("trainable", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("model", sa.Column("search", TSVECTOR, sa.Computed(SEARCH, persisted=True)))
    op.create_index("model_search_idx", "model", ["search"], postgresql_using="gin")
    op.create_index("model_family_idx", "model", ["family", "name"])
    op.create_index("model_base_model_idx", "model", ["base_model", "name"])

    op.add_column("model_version", sa.Column("metadata", JSONB))
    # Apart from the rest of the metadata: only GetModelVersion wants it, and it may be long.
    op.add_column("model_version", sa.Column("model_card", sa.Text))
    op.add_column("model_version", sa.Column("metrics", JSONB, nullable=False, server_default="{}"))
    op.add_column("model_version", sa.Column("labels", JSONB, nullable=False, server_default="{}"))
    op.add_column("model_version", sa.Column("archive_time", sa.TIMESTAMP(timezone=True)))
    op.add_column("model_version", sa.Column("training_job", sa.Text))
    op.add_column("model_version", sa.Column("verify_time", sa.TIMESTAMP(timezone=True)))
    op.create_index(
        "model_version_labels_idx",
        "model_version",
        ["labels"],
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_index("model_version_version_idx", "model_version", ["version", "uid"])
    op.create_index("model_version_training_job_idx", "model_version", ["training_job"])
    op.create_index(
        "model_version_archive_idx",
        "model_version",
        ["model_id"],
        postgresql_where=sa.text("archive_time IS NOT NULL"),
    )
    # What all files take is told from the index alone.
    op.drop_index("model_version_digest_idx")
    op.create_index("model_version_digest_idx", "model_version", ["digest"], postgresql_include=["size_bytes"])
    op.create_index("alias_alias_idx", "alias", ["alias", "model_id"])

    # In the order of the moves: ids are made by several processes, times are those of the transactions' begin.
    op.add_column("alias_history", sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False))
    op.drop_index("alias_history_model_name_idx")
    op.create_index("alias_history_model_name_idx", "alias_history", ["model_name", "position"])
    op.create_index("alias_history_alias_idx", "alias_history", ["model_name", "alias", "position"])

    op.create_table(
        "audit_entry",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("uid", sa.Uuid, nullable=False, unique=True),
        sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("resource", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
    )
    op.create_index("audit_entry_create_time_idx", "audit_entry", ["create_time"])
    for column in ("subject", "method", "resource"):
        op.create_index(f"audit_entry_{column}_idx", "audit_entry", [column, "position"])

    op.execute(APPEND_ONLY)
    for table in GUARDED:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_never_emptied BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    op.drop_table("audit_entry")
    for trigger in ("alias_history_append_only", "alias_history_never_emptied"):
        op.execute(f"DROP TRIGGER {trigger} ON alias_history")
    op.execute("DROP FUNCTION refuse_change()")
    op.drop_index("alias_history_alias_idx")
    op.drop_index("alias_history_model_name_idx")
    op.drop_column("alias_history", "position")
    op.create_index("alias_history_model_name_idx", "alias_history", ["model_name", "alias", "uid"])
    op.drop_index("alias_alias_idx")
    op.drop_index("model_version_digest_idx")
    op.create_index("model_version_digest_idx", "model_version", ["digest"])
    for column in ("metadata", "model_card", "metrics", "labels", "archive_time", "training_job", "verify_time"):
        op.drop_column("model_version", column)
    op.drop_index("model_version_version_idx")
    for column in ("search", "family", "given_family", "read_family", "base_model", "trainable"):
        op.drop_column("model", column)
