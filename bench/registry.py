"""Lists, searches and resolving with 1,000,000 versions, each beside the same call with 1,000.

The rows are made by the database itself, 20 versions a model, in a real embedded PostgreSQL; the calls go through a
registry of its own process and gRPC, in turn to the one with few and the one with many.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora.registry.v1 import registry_pb2_grpc
from modelmora_runtime.postgres import EmbeddedPostgres

from bench.up import Up

VERSIONS_PER_MODEL = 20
SMALL, LARGE = 1_000, 1_000_000
CHUNK = 5_000
"""Models made in one transaction."""
CALLS = 200
WARM_UP = 20

MODELS = """
INSERT INTO registry.model (uid, name, display_name, description, task_type, labels, given_family, revision,
    create_time, update_time)
SELECT md5('model' || m)::uuid, 'org' || m % 100 || '/model-' || m, 'Model ' || m,
    'A model of series s' || m % 2500 || ' for ' || (ARRAY['search','chat','code','speech','vision'])[1 + m % 5],
    'txt2embed', jsonb_build_object('team', 'team-' || m % 10), (ARRAY['bert','llama','gemma','qwen'])[1 + m % 4], 1,
    timestamptz '2026-01-01' + m * interval '1 second', timestamptz '2026-01-01' + m * interval '1 second'
FROM generate_series($1::bigint, $2::bigint - 1) AS m
"""
VERSIONS = """
INSERT INTO registry.model_version (uid, model_id, version, state, task_type, engine, source, digest, size_bytes,
    expected_checksums, metadata, metrics, labels, revision, create_time, update_time)
SELECT md5('version' || m || ' ' || v)::uuid, md5('model' || m)::uuid, 'v' || v || '.0.0', 'ready', 'txt2embed',
    (ARRAY['echo', 'sentence_transformers'])[1 + v % 2], '{"empty": {}}',
    'sha256:' || encode(sha256(('d' || m || ' ' || v)::bytea), 'hex'),
    m * 1000 + v, '{}', '{"architecture": "BertModel", "family": "bert", "parameter_count": 22713216}',
    jsonb_build_object('accuracy', (m * 7 + v) % 100 / 100.0),
    jsonb_build_object('team', 'team-' || m % 10), 3,
    timestamptz '2026-01-01' + (m * 20 + v) * interval '1 second',
    timestamptz '2026-01-01' + (m * 20 + v) * interval '1 second'
FROM generate_series($1::bigint, $2::bigint - 1) AS m, generate_series(1, 20) AS v
"""
FILES = """
INSERT INTO registry.artifact_file (model_version_id, path, size_bytes, sha256)
SELECT md5('version' || m || ' ' || v)::uuid, 'model.safetensors', m * 1000 + v,
    'sha256:' || encode(sha256(('f' || m || ' ' || v)::bytea), 'hex')
FROM generate_series($1::bigint, $2::bigint - 1) AS m, generate_series(1, 20) AS v
"""
USED = """
INSERT INTO registry.used_version (model_name, version, model_version_id, digest, create_time)
SELECT 'org' || m % 100 || '/model-' || m, 'v' || v || '.0.0', md5('version' || m || ' ' || v)::uuid, 'd', now()
FROM generate_series($1::bigint, $2::bigint - 1) AS m, generate_series(1, 20) AS v
"""
ALIASES = """
INSERT INTO registry.alias (model_id, alias, model_version_id, update_time)
SELECT md5('model' || m)::uuid, word, md5('version' || m || ' ' || v)::uuid, now()
FROM generate_series($1::bigint, $2::bigint - 1) AS m, (VALUES ('latest', 20), ('production', 19)) AS a (word, v)
WHERE word = 'latest' OR m % 2 = 0
"""

INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relnamespace = 'registry'::regnamespace AND NOT indisunique
"""


@dataclass
class Figures:
    """Seconds of each call, by what was asked, with few and with many versions, call by call in turn."""

    few: dict[str, list[float]] = field(default_factory=dict)
    many: dict[str, list[float]] = field(default_factory=dict)
    filled_seconds: float = 0.0


def registry_bench(say: Callable[[str], None], versions: int = LARGE) -> Figures:
    return asyncio.run(_bench(say, versions))


async def _bench(say: Callable[[str], None], versions: int) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as temporary:
        folder = Path(temporary)
        async with (
            EmbeddedPostgres(folder / "pg", folder / "run") as postgres,
            _registry(postgres.url, folder / "few", SMALL) as few,
        ):
            began = time.perf_counter()
            async with _registry(postgres.url, folder / "many", versions) as many:
                figures.filled_seconds = time.perf_counter() - began
                say(f"registry: {versions} versions after {figures.filled_seconds:.0f} s")
                sides = (_calls(few.registry, SMALL), _calls(many.registry, versions))
                await asyncio.to_thread(_measure, sides, figures)
    return figures


@asynccontextmanager
async def _registry(server_url: str, data_dir: Path, versions: int) -> AsyncIterator[Up]:
    """A registry with so many versions in a database of its own."""
    url = await make_database(server_url, data_dir.name)
    command = ("-m", "modelmora_app", "serve", "registry")
    up = Up(data_dir, command=command, settings={"DATABASE_URL": url})
    await asyncio.to_thread(up.start)
    try:
        await fill(url, versions // VERSIONS_PER_MODEL)
        yield up
    finally:
        await asyncio.to_thread(up.stop)


async def make_database(server_url: str, name: str) -> str:
    """The URL of a new database of this server."""
    connection = await asyncpg.connect(server_url.replace("+asyncpg", ""))
    try:
        await connection.execute(f"CREATE DATABASE {name}", timeout=600)
    finally:
        await connection.close()
    head, _, tail = server_url.partition("@/")
    return f"{head}@/{name}?{tail.partition('?')[2]}"


async def fill(url: str, models: int) -> None:
    """So many models with 20 versions each. Indexes are made when the rows are there, and keys are not checked: that
    takes a third of the time."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    indexes = await connection.fetch(INDEXES)
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['name']}")
    await connection.execute(
        "SET session_replication_role = replica; SET synchronous_commit = off; SET maintenance_work_mem = '256MB'"
    )
    for at in range(0, models, CHUNK):
        async with connection.transaction():
            for statement in (MODELS, VERSIONS, FILES, USED, ALIASES):
                await connection.execute(statement, at, min(at + CHUNK, models), timeout=600)
    for index in indexes:
        await connection.execute(index["definition"], timeout=600)
    await connection.execute("VACUUM ANALYZE", timeout=600)
    await connection.close()


def _measure(sides: Sequence[Mapping[str, Callable[[], object]]], figures: Figures) -> None:
    """Call by call in turn, so that the mood of the machine is the same for both."""
    for name in sides[0]:
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(WARM_UP + CALLS):
            for calls, seconds in zip(sides, found, strict=True):
                began = time.perf_counter()
                calls[name]()
                if number >= WARM_UP:
                    seconds.append(time.perf_counter() - began)
        figures.few[name], figures.many[name] = found


def _calls(registry: registry_pb2_grpc.RegistryServiceStub, versions: int) -> Mapping[str, Callable[[], object]]:
    number, models = count(7, 7919), versions // VERSIONS_PER_MODEL

    def one() -> int:
        """Some model, another one each time."""
        return next(number) % models

    middle = _token_in_the_middle(registry, models)
    return {
        "ResolveModel, org/repo": lambda: registry.ResolveModel(
            pb.ResolveModelRequest(reference="org{}/model-{}".format(*_names(one()))), timeout=30
        ),
        "ResolveModel, org/repo@version": lambda: registry.ResolveModel(
            pb.ResolveModelRequest(reference="org{}/model-{}@v7.0.0".format(*_names(one()))), timeout=30
        ),
        "first page of the models of a family and a team": lambda: registry.ListModels(
            pb.ListModelsRequest(filter="family = bert AND labels.team = team-4"), timeout=30
        ),
        "page in the middle of all models": lambda: registry.ListModels(
            pb.ListModelsRequest(page_token=middle), timeout=30
        ),
        "models in production": lambda: registry.ListModels(
            pb.ListModelsRequest(filter="stage = production"), timeout=30
        ),
        "newest versions of all models, by state, team and metric": lambda: registry.ListModelVersions(
            pb.ListModelVersionsRequest(
                parent="models/-", filter="state = ready AND labels.team = team-3 AND metrics.accuracy >= 0.5"
            ),
            timeout=30,
        ),
        "versions of one model": lambda: registry.ListModelVersions(
            pb.ListModelVersionsRequest(parent="org{}/model-{}".format(*_names(one()))), timeout=30
        ),
        "search for a model": lambda: registry.ListModels(pb.ListModelsRequest(query=f"model {one()}"), timeout=30),
        "search for a series": lambda: registry.ListModels(
            pb.ListModelsRequest(query=f"series s{one() % 2500}"), timeout=30
        ),
        "search for one word of five, best first": lambda: registry.ListModels(
            pb.ListModelsRequest(query="speech"), timeout=30
        ),
        "search for one word of five, in a team, best first": lambda: registry.ListModels(
            pb.ListModelsRequest(query="speech", filter="labels.team = team-3"), timeout=30
        ),
        "search for one word of five, in a team that has none, best first": lambda: registry.ListModels(
            pb.ListModelsRequest(query="speech", filter="labels.team = team-4"), timeout=30
        ),
        "search for one word of five, in a team that has none": lambda: registry.ListModels(
            pb.ListModelsRequest(query="speech", filter="labels.team = team-4", order_by="name"), timeout=30
        ),
        "search for a word that all have": lambda: registry.ListModels(pb.ListModelsRequest(query="model"), timeout=30),
        "search for one word of five, in a team": lambda: registry.ListModels(
            pb.ListModelsRequest(query="speech", filter="labels.team = team-3", order_by="name"), timeout=30
        ),
    }


def _names(model: int) -> tuple[int, int]:
    return model % 100, model


def _token_in_the_middle(registry: registry_pb2_grpc.RegistryServiceStub, models: int) -> str:
    request, seen = pb.ListModelsRequest(page_size=min(1000, models // 2)), 0
    while seen < models // 2:
        page = registry.ListModels(request, timeout=30)
        seen, request.page_token = seen + len(page.models), page.next_page_token
    return request.page_token
