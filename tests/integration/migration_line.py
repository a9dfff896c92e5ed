"""A package whose migrations make a table `thing`, then give it a column."""

from __future__ import annotations

from pathlib import Path

FIRST = """
import sqlalchemy as sa
from alembic import op
revision = "0001"
down_revision = None

def upgrade():
    op.create_table("thing", sa.Column("id", sa.Integer, primary_key=True), sa.Column("word", sa.Text, nullable=False))

def downgrade():
    op.drop_table("thing")
"""
SECOND = """
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"

def upgrade():
    op.add_column("thing", sa.Column("note", sa.Text))

def downgrade():
    op.drop_column("thing", "note")
"""


def write_line(package: Path) -> None:
    """Write the package with its two migrations."""
    folder = package / "migrations"
    folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (folder / "0001_thing.py").write_text(FIRST)
    (folder / "0002_note.py").write_text(SECOND)
