"""Imports from S3 and HTTP through the registry's own RPCs, and that what opens the sources is told to nobody."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from integration.hub_server import FakeHub, hub
from integration.registry_rig import Rig, registry, sentence_model
from integration.s3_server import S3Server, s3_server
from modelmora.errors import InvalidArgument, ModelMoraError, SourceNotFound, SourceUnavailable
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry import imports
from modelmora_registry.main import Settings
from modelmora_runtime import settings as settings_file

SECRETS = {name: f"{name}-s3cr3t-9f8e7d" for name in ("hub", "http", "s3", "proxy")}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHub]:
    folder = sentence_model(tmp_path / "m")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with hub(files, token=SECRETS["hub"], files_token=SECRETS["http"]) as fake:
        yield fake


def secret_settings(fake: FakeHub, s3: S3Server, folder: Path) -> dict[str, Any]:
    (folder / "hub").write_text(SECRETS["hub"])
    (folder / "http").write_text(SECRETS["http"])
    (folder / "keys").write_text(f"[default]\naws_access_key_id = AKIAX\naws_secret_access_key = {SECRETS['s3']}\n")
    return {
        "hub_endpoint": fake.url,
        "hub_token_file": folder / "hub",
        "http_token_files": {fake.url.removeprefix("http://"): folder / "http"},
        "s3_endpoint": s3.url,
        "s3_credentials_file": folder / "keys",
    }


@pytest.fixture
async def rig(
    database_url: str, data_dir: Path, fake: FakeHub, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    monkeypatch.setattr(imports.Imports.__init__, "__kwdefaults__", {"retry_delays_seconds": (0.01,)})
    async with registry(database_url, data_dir, **secret_settings(fake, s3, tmp_path)) as rig:
        yield rig


def at(url: str, *files: str) -> pb.ModelSource:
    return pb.ModelSource(url=pb.UrlSource(url=url, files=files))


async def dump(database_url: str) -> str:
    """Every row of every table of the registry, as text."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""), timeout=30)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'registry'")
        rows = [await connection.fetch(f'SELECT t::text FROM registry."{table[0]}" t') for table in tables]  # noqa: S608
        return "\n".join(str(row[0]) for table in rows for row in table)
    finally:
        await connection.close()


async def test_no_secret_reaches_logs_errors_answers_or_rows(
    rig: Rig, fake: FakeHub, s3: S3Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    s3.bucket("secret", {f"m/{path}": each for path, each in fake.files.items()})
    s3.client.put_object(Bucket="secret", Key="torn/model.safetensors", Body=b"torn", ACL="public-read")
    told = [caplog.text]
    files = sorted(fake.files)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        sources = {
            "a/hub": (pb.ModelSource(hub=pb.HubSource(repo_id="org/repo")), "ready"),
            "a/http": (at(f"{fake.url}/files", *files), "ready"),
            "a/s3": (at("s3://secret/m"), "ready"),
            "a/torn": (at("s3://secret/torn"), "failed"),
        }
        for model_id, (source, state) in sources.items():
            version = await rig.import_model(
                model_id=model_id, version="1", source=source, engine="sentence_transformers"
            )
            assert pb.ModelVersionState.Name(version.state).endswith(state.upper()), version.failure
            told.append(str(version))
        for status in (401, 403, 404, 429, 500):
            for source, _ in sources.values():
                fake.refuse += [(status, {"X-Error-Message": "no"})]
                try:
                    request = pb.ImportModelRequest(model_id="b/b", version="1", source=source, validate_only=True)
                    told.append(str(await rig.call(rig.registry.ImportModel, request)))
                except ModelMoraError as error:
                    told.append(f"{error!r} {error.metadata} {error.fields}")
                fake.refuse.clear()
    assert {request[3] for request in fake.requests if request[3]} == {
        f"Bearer {SECRETS[name]}" for name in ("hub", "http")
    }
    told += [caplog.text, printed.getvalue(), await dump(rig.database_url)]
    found = [name for name, secret in SECRETS.items() for text in told if secret in text]
    assert found == []
    assert "X-Amz-Signature" not in "\n".join(told), "a signature opens the object for an hour"
    below = [path for path in await asyncio.to_thread(lambda: list(rig.data_dir.rglob("*"))) if path.is_file()]
    assert below
    for path in below:
        content = await asyncio.to_thread(path.read_bytes)
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path


async def test_the_settings_are_shown_without_their_secrets(fake: FakeHub, s3: S3Server, tmp_path: Path) -> None:
    given = {**secret_settings(fake, s3, tmp_path), "proxy": f"http://user:{SECRETS['proxy']}@proxy.test:3128"}
    flags = {f"registry.{name}": value for name, value in given.items()}
    loaded = settings_file.load({"registry": Settings}, environ={}, flags=flags)
    shown = "\n".join(line.value for line in loaded.shown())
    assert str(tmp_path / "keys") in shown
    assert [name for name, secret in SECRETS.items() if secret in shown + repr(loaded["registry"])] == []


async def test_what_a_url_source_may_not_be_is_named_at_its_field(rig: Rig, fake: FakeHub) -> None:
    table: list[tuple[pb.ModelSource, dict[str, str], type[ModelMoraError], str | None]] = [
        (at("ftp://h/a"), {"version": "1"}, InvalidArgument, "source.url.url"),
        (at(f"https://user:{SECRETS['http']}@h/a"), {"version": "1"}, InvalidArgument, "source.url.url"),
        (at("https://h/a", "../x"), {"version": "1"}, InvalidArgument, "source.url.files"),
        (at("https://h/a", "x", "x"), {"version": "1"}, InvalidArgument, "source.url.files"),
        (at(f"{fake.url}/files", WEIGHTS), {}, InvalidArgument, "version"),
        (at(f"{fake.url}/files", "none"), {"version": "1"}, SourceNotFound, None),
        (at("s3://no-such-bucket"), {"version": "1"}, SourceNotFound, None),
        (at("https://127.0.0.1:9/a", "x"), {"version": "1"}, SourceUnavailable, None),
    ]
    for source, fields, cls, field in table:
        request = pb.ImportModelRequest(model_id="a/b", source=source, **fields)
        error = await rig.refused(lambda r=request: rig.call(rig.registry.ImportModel, r), cls, field)  # type: ignore[misc]
        assert SECRETS["http"] not in f"{error!r}{error.fields}"
