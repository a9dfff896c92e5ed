"""What operators said of versions and of the node, acquire events, and measurements by what they were measured with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MEASURED_WITH = ("profile", "limits", "device")


def upgrade() -> None:
    op.create_table(
        "residency",
        sa.Column("node", sa.String(255), primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("pinned", sa.Boolean, nullable=False),
        # Null: the node's idle time to live.
        sa.Column("keep_alive_seconds", sa.Float),
        sa.Column("min_replicas", sa.Integer, nullable=False),
        sa.Column("max_replicas", sa.Integer, nullable=False),
        sa.Column("preload", sa.Boolean, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("keep_alive_seconds >= 0", name="residency_keep_alive_check"),
        sa.CheckConstraint(
            "0 <= min_replicas AND min_replicas <= max_replicas AND max_replicas BETWEEN 1 AND 64",
            name="residency_replicas_check",
        ),
    )

    op.create_table(
        "node_setting",
        sa.Column("node", sa.String(255), primary_key=True),
        # Device to {"memory_bytes": n} or {"share": x}; what is not named, and every null below: as settings say.
        sa.Column("budgets", JSONB, nullable=False),
        sa.Column("policy", sa.Text),
        sa.Column("idle_ttl_seconds", sa.Float),
        sa.Column("load_concurrency", sa.Integer),
        sa.Column("cordoned", sa.Boolean, nullable=False),
        sa.Column("cordon_reason", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("policy IN ('lru', 'gdsf', 'ttl')", name="node_setting_policy_check"),
        sa.CheckConstraint("idle_ttl_seconds >= 0", name="node_setting_idle_ttl_check"),
        sa.CheckConstraint("load_concurrency > 0", name="node_setting_load_concurrency_check"),
    )

    op.create_table(
        "acquire_event",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        # When it was wanted; rows are written when its use has ended.
        sa.Column("start_time", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("use_seconds", sa.Float, nullable=False),
        sa.Column("memory", JSONB, nullable=False),
        sa.Column("load_seconds", sa.Float, nullable=False),
    )
    op.create_index("acquire_event_time_idx", "acquire_event", ["node", "start_time", "uid"])

    for name in _MEASURED_WITH:
        default = "host" if name == "device" else ""
        op.add_column("measurement", sa.Column(name, sa.Text, nullable=False, server_default=default))
    # Everything beside the highest bytes (`memory`): those while loading and right after it, batch, limits, load times.
    op.add_column("measurement", sa.Column("learned", JSONB, nullable=False, server_default="{}"))
    _key("node", "model_version", "engine", *_MEASURED_WITH)


def downgrade() -> None:
    op.execute(
        "DELETE FROM measurement AS old USING measurement AS new WHERE old.node = new.node "
        "AND old.model_version = new.model_version AND (old.update_time, old.ctid) < (new.update_time, new.ctid)"
    )
    _key("node", "model_version")
    op.drop_column("measurement", "learned")
    for name in _MEASURED_WITH:
        op.drop_column("measurement", name)
    for table in ("acquire_event", "node_setting", "residency"):
        op.drop_table(table)


def _key(*columns: str) -> None:
    op.drop_constraint("measurement_pkey", "measurement", type_="primary")
    op.create_primary_key("measurement_pkey", "measurement", list(columns))
