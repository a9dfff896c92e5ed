"""Inference jobs, their inputs that wait, and their results."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATES = ("pending", "queued", "running", "cancelling", "succeeded", "failed", "cancelled")


def time_column(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


def text_column(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def number_column(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=False)


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("uid", sa.Uuid, primary_key=True),
        text_column("tenant"),
        text_column("subject"),
        text_column("request_id", nullable=True),
        text_column("request_digest"),
        text_column("model"),
        text_column("model_version"),
        text_column("digest"),
        sa.Column("task_type", sa.Integer, nullable=False),
        sa.Column("options", sa.LargeBinary, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("claim_token", sa.Uuid),
        time_column("claim_expire_time", nullable=True),
        sa.Column("inputs", sa.Integer, nullable=False),
        sa.Column("succeeded", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        number_column("input_tokens"),
        number_column("stored_bytes"),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error_reason", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("first_error_reason", sa.Text),
        sa.Column("first_error_message", sa.Text),
        time_column("create_time"),
        time_column("update_time"),
        time_column("start_time", nullable=True),
        time_column("end_time", nullable=True),
        time_column("deadline"),
        time_column("not_before"),
        sa.Column("result_ttl", sa.Interval, nullable=False),
        time_column("result_expire_time", nullable=True),
        number_column("revision"),
        sa.UniqueConstraint("tenant", "request_id", name="job_request_id_key"),
        sa.CheckConstraint(f"state IN ({', '.join(repr(state) for state in STATES)})", name="job_state_check"),
        sa.CheckConstraint(
            "(end_time IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="job_end_time_check"
        ),
        sa.CheckConstraint("end_time IS NULL OR claim_token IS NULL", name="job_claim_check"),
        sa.CheckConstraint("succeeded + failed <= inputs", name="job_inputs_check"),
        sa.CheckConstraint("state <> 'succeeded' OR succeeded + failed = inputs", name="job_succeeded_check"),
    )
    # Those that somebody is to take up; ended ones, the most by far, are not in it.
    op.create_index("job_unfinished_idx", "job", ["create_time"], postgresql_where=sa.text("end_time IS NULL"))
    op.create_index("job_tenant_idx", "job", ["tenant", "uid"])
    op.create_index(
        "job_result_expire_time_idx", "job", ["result_expire_time"], postgresql_where=sa.text("end_time IS NOT NULL")
    )
    # What all jobs keep is summed over this index alone.
    op.create_index("job_stored_bytes_idx", "job", ["stored_bytes"], postgresql_where=sa.text("stored_bytes > 0"))

    for table in ("job_input", "job_result"):
        op.create_table(
            table,
            sa.Column("job_uid", sa.Uuid, sa.ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
            sa.Column("first", sa.Integer, primary_key=True),
            sa.Column("inputs", sa.Integer, nullable=False),
            sa.Column("payload", sa.LargeBinary, nullable=False),
            sa.CheckConstraint("inputs > 0", name=f"{table}_inputs_check"),
        )
        # Vectors do not get smaller by trying.
        op.execute(f"ALTER TABLE {table} ALTER COLUMN payload SET STORAGE EXTERNAL")


def downgrade() -> None:
    for table in ("job_result", "job_input", "job"):
        op.drop_table(table)
