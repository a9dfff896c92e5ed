"""Model locks, fingerprints, what each file was like when it was hashed, and the files that are not as recorded."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

VERDICTS = "verdict IN ('changed', 'missing', 'extra')"


def time_column(name: str) -> sa.Column:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False)


def version_column() -> sa.Column:
    return sa.Column(
        "model_version_id", sa.Uuid, sa.ForeignKey("model_version.uid", ondelete="CASCADE"), primary_key=True
    )


def upgrade() -> None:
    # A lock outlives what it names, so it refers by name, inside its text.
    op.create_table(
        "model_lock",
        sa.Column("uid", sa.Uuid, primary_key=True),
        sa.Column("lock_id", sa.Text(collation="C"), nullable=False, unique=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("yaml", sa.Text, nullable=False),
        sa.Column("request_id", sa.Uuid, unique=True),
        sa.Column("request_digest", sa.Text),
        time_column("create_time"),
    )

    op.create_table(
        "fingerprint",
        version_column(),
        sa.Column("profile", sa.Text, primary_key=True),
        sa.Column("golden", sa.Text, primary_key=True),
        sa.Column("kept", JSONB, nullable=False),
        sa.Column("last", JSONB),
        sa.Column("similarity", sa.Double, nullable=False),
        sa.Column("matches", sa.Boolean, nullable=False),
        time_column("create_time"),
        sa.Column("last_time", sa.TIMESTAMP(timezone=True)),
    )
    op.create_index(
        "fingerprint_drift_idx", "fingerprint", ["model_version_id"], postgresql_where=sa.text("NOT matches")
    )

    # By content, not by version: versions that share a file share what is known of it.
    op.create_table(
        "file_state",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("inode", sa.BigInteger, primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("ctime_ns", sa.BigInteger, nullable=False),
        sa.Column("found_sha256", sa.Text, nullable=False),
        time_column("hash_time"),
    )
    op.create_index("file_state_hash_time_idx", "file_state", ["hash_time"])
    # What was imported before is looked at by the scrub, oldest first.
    op.execute(
        "INSERT INTO file_state SELECT DISTINCT sha256, 0, size_bytes, 0, 0, sha256, to_timestamp(0) FROM artifact_file"
    )

    op.create_table(
        "file_drift",
        version_column(),
        sa.Column("path", sa.Text(collation="C"), primary_key=True),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("found_sha256", sa.Text, nullable=False),
        time_column("find_time"),
        sa.CheckConstraint(VERDICTS, name="file_drift_verdict_check"),
    )


def downgrade() -> None:
    for table in ("file_drift", "file_state", "fingerprint", "model_lock"):
        op.drop_table(table)
