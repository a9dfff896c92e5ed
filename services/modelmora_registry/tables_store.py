"""The tables of models, versions, files, aliases, requests and holds, as the queries know them.

The migrations make them; the other stores have their own beside their queries.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

_metadata = sa.MetaData()
UID = sa.Uuid(as_uuid=False)
_text = sa.Text()
TIME = sa.TIMESTAMP(timezone=True)
_json = JSONB(none_as_null=True)

model = sa.Table(
    "model",
    _metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("name", _text),
    sa.Column("display_name", _text),
    sa.Column("description", _text),
    sa.Column("task_type", _text),
    sa.Column("labels", _json),
    sa.Column("given_family", _text),
    sa.Column("read_family", _text),
    sa.Column("family", _text),
    sa.Column("base_model", _text),
    sa.Column("trainable", sa.Boolean),
    sa.Column("revision", sa.BigInteger),
    sa.Column("create_time", TIME),
    sa.Column("update_time", TIME),
)
model_version = sa.Table(
    "model_version",
    _metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("model_id", UID),
    sa.Column("version", _text),
    sa.Column("state", _text),
    sa.Column("task_type", _text),
    sa.Column("engine", _text),
    sa.Column("engine_options", _json),
    sa.Column("source", _json),
    sa.Column("digest", _text),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("resource_requirements", _json),
    sa.Column("engine_profile", _json),
    sa.Column("limits", _json),
    sa.Column("progress", _json),
    sa.Column("failure", _json),
    sa.Column("expected_checksums", _json),
    sa.Column("metadata", _json),
    sa.Column("model_card", _text),
    sa.Column("metrics", _json),
    sa.Column("labels", _json),
    sa.Column("archive_time", TIME),
    sa.Column("training_job", _text),
    sa.Column("verify_time", TIME),
    sa.Column("revision", sa.BigInteger),
    sa.Column("create_time", TIME),
    sa.Column("update_time", TIME),
)
artifact_file = sa.Table(
    "artifact_file",
    _metadata,
    sa.Column("model_version_id", UID, primary_key=True),
    sa.Column("path", _text, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("sha256", _text),
)
alias = sa.Table(
    "alias",
    _metadata,
    sa.Column("model_id", UID, primary_key=True),
    sa.Column("alias", _text, primary_key=True),
    sa.Column("model_version_id", UID),
    sa.Column("update_time", TIME),
)
alias_history = sa.Table(
    "alias_history",
    _metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("model_name", _text),
    sa.Column("alias", _text),
    sa.Column("from_version", _text),
    sa.Column("to_version", _text),
    sa.Column("subject", _text),
    sa.Column("create_time", TIME),
    sa.Column("position", sa.BigInteger),
)
used_version = sa.Table(
    "used_version",
    _metadata,
    sa.Column("model_name", _text, primary_key=True),
    sa.Column("version", _text, primary_key=True),
    sa.Column("model_version_id", UID),
    sa.Column("digest", _text),
    sa.Column("create_time", TIME),
    sa.Column("delete_time", TIME),
)
create_request = sa.Table(
    "create_request",
    _metadata,
    sa.Column("request_id", UID, primary_key=True),
    sa.Column("digest", _text),
    sa.Column("resource_id", UID),
    sa.Column("create_time", TIME),
)
hold = sa.Table(
    "hold",
    _metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("model_version_id", UID),
    sa.Column("holder", _text),
    sa.Column("create_time", TIME),
    sa.Column("expire_time", TIME),
    sa.Column("process", _text),
)

BRIEF_VERSION = tuple(column for column in model_version.c if column.name != "model_card")
"""All of a version but its model card, which may be long and which only GetModelVersion answers."""
