"""A registry behind its real host and gRPC, on a real database, with the small models its tests import."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import modelmora_registry.main as registry_main
import pytest
from modelmora.errors import ModelMoraError
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.registry.v1 import registry_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_registry import list_store
from modelmora_registry.main import Settings
from modelmora_runtime.db import Database
from modelmora_runtime.host import Context, EngineCard, Host
from modelmora_runtime.settings import PlatformSettings
from modelmora_worker.engines.base import TABLE, check_options

TABLES = ("model", "model_version", "artifact_file", "alias", "alias_history", "used_version", "create_request", "hold")
WAIT_SECONDS = 60.0


def _card(name: str) -> EngineCard:
    row = TABLE[name]
    return EngineCard(name, row.tasks, row.needs_files, partial(check_options, row), profiles=row.profiles)


ENGINES = {name: _card(name) for name in TABLE}


@dataclass
class Rig:
    """One running registry. `call` raises the platform's errors."""

    registry: Any
    holds: Any
    data_dir: Path
    database_url: str
    host: Host

    async def call(self, method: Any, request: Any, timeout: float = WAIT_SECONDS) -> Any:
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def rows(self, *tables: str) -> dict[str, int]:
        """How many rows each table has."""
        connection = await asyncpg.connect(self.database_url.replace("+asyncpg", ""), timeout=30)
        try:
            return {
                table: await connection.fetchval(f"SELECT count(*) FROM registry.{table}")  # noqa: S608
                for table in tables or TABLES
            }
        finally:
            await connection.close()

    async def sql(self, statement: str, *values: Any) -> Any:
        connection = await asyncpg.connect(self.database_url.replace("+asyncpg", ""), timeout=30)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    @property
    def artifacts(self) -> Path:
        return self.data_dir / "artifacts"

    def files(self) -> list[str]:
        """Everything below the artifact store."""
        return sorted(str(path.relative_to(self.artifacts)) for path in self.artifacts.rglob("*") if path.is_file())

    async def import_model(self, **fields: Any) -> pb.ModelVersion:
        """ImportModel, then waits until the version is READY or FAILED."""
        response = await self.call(self.registry.ImportModel, pb.ImportModelRequest(**fields))
        return await self.final(response.model_version.name)

    async def final(self, name: str) -> pb.ModelVersion:
        last = await self.watch(name)
        return last[-1].model_version

    async def watch(self, name: str, cursor: str = "") -> list[pb.WatchModelVersionResponse]:
        """Every answer of a watch until it ends by itself."""
        try:
            request = pb.WatchModelVersionRequest(name=name, cursor=cursor)
            return [answer async for answer in self.registry.WatchModelVersion(request, timeout=WAIT_SECONDS)]
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def echo(self, model_id: str = "acme/echo", version: str = "1.0.0", **fields: Any) -> pb.ModelVersion:
        """A READY version without files."""
        request = pb.ImportModelRequest(model_id=model_id, version=version, engine="echo", **fields)
        request.source.empty.SetInParent()
        return (await self.call(self.registry.ImportModel, request)).model_version

    async def refused(self, call: Callable[[], Any], cls: type[ModelMoraError], field: str | None = None) -> Any:
        """The error of a call that must be refused and must leave neither rows nor files."""
        rows, files = await self.rows(), self.files()
        with pytest.raises(ModelMoraError) as raised:
            await call()
        error = raised.value
        assert type(error) is cls, f"{type(error).__name__}: {error}"
        if field is not None:
            assert field in [violation.field for violation in error.fields], error.fields
        assert await self.rows() == rows
        assert self.files() == files
        return error


@asynccontextmanager
async def registry(
    database_url: str,
    data_dir: Path,
    *,
    engines: Mapping[str, EngineCard] = ENGINES,
    connect_seconds: float = WAIT_SECONDS,
    statement_seconds: float = WAIT_SECONDS,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A registry that serves; `settings` are those of its section. It waits for a connection and for a statement as
    long as the tests wait for an answer, and so does whoever opens a database beside it: on a machine that stands still
    that is not away, and no condition finds too little."""
    platform = PlatformSettings(data_dir=data_dir, database_url=database_url, port=0, metrics_port=0, grace_seconds=2)
    settings = {"source_hosts": ("*", "127.0.0.1", "localhost"), **settings}  # where the tests' servers are
    context = Context("registry", Settings(**settings), registry_main.open, "required")
    with pytest.MonkeyPatch.context() as patch:
        defaults = Database.__init__.__kwdefaults__
        patch.setitem(defaults, "connect_seconds", connect_seconds)  # type: ignore[type-var]
        patch.setitem(defaults, "statement_seconds", statement_seconds)  # type: ignore[type-var]
        patch.setattr(list_store, "LONGEST_SECONDS", int(WAIT_SECONDS))
        async with (
            Host(platform, [context], engines=engines, announce=lambda line: None) as host,
            grpc.aio.insecure_channel(host.target) as channel,
        ):
            yield Rig(
                registry_pb2_grpc.RegistryServiceStub(channel),  # type: ignore[no-untyped-call]
                registry_pb2_grpc.RegistryHoldServiceStub(channel),  # type: ignore[no-untyped-call]
                data_dir,
                database_url,
                host,
            )


def sentence_model(folder: Path, *, tokens: int = 128, width: int = 16, seed: bytes = b"w") -> Path:
    """Files in the layout of sentence-transformers; the weights are bytes, nobody computes with them here."""
    (folder / "1_Pooling").mkdir(parents=True)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    for path, content in {
        "modules.json": modules,
        "config.json": {"hidden_size": width, "max_position_embeddings": 512},
        "sentence_bert_config.json": {"max_seq_length": tokens},
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
    }.items():
        (folder / path).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(safetensors(100_000, seed))
    return folder


def safetensors(size_bytes: int, seed: bytes = b"w") -> bytes:
    """A whole safetensors file of this size: one tensor of bytes."""
    header = b""
    for _ in range(3):  # The header tells the length of what follows it, in digits that it is made of.
        weights = size_bytes - 8 - len(header)
        header = json.dumps({"weights": {"dtype": "U8", "shape": [weights], "data_offsets": [0, weights]}}).encode()
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + (seed * size_bytes)[: size_bytes - 8 - len(header)]


def local(path: Path) -> pb.ModelSource:
    return pb.ModelSource(local=pb.LocalSource(path=str(path)))


def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Waits for a fact on disk that nothing announces. Blocks: call it in a thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def modes_below(folder: str) -> dict[str, int]:
    """Permissions by relative path of the files in a folder."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in files}
