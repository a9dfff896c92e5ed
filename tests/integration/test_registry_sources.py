"""S3 and HTTP(S) as sources, and the room on disk: the artifact store against real servers, without a database."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modelmora_registry.main as registry_main
import pytest
from integration.hub_server import COMMIT, FakeHub, hub
from integration.registry_rig import safetensors, sentence_model, until
from integration.s3_server import S3Server, s3_server
from modelmora.errors import (
    Cancelled,
    ChecksumMismatch,
    FailedPrecondition,
    InvalidArgument,
    InvalidModelFiles,
    ModelMoraError,
    SourceNotFound,
    SourceUnavailable,
    StorageFull,
    UnsafeFile,
)
from modelmora_registry.artifacts import Artifacts, Fetched, Progress
from modelmora_registry.domain import HubSource, LocalSource, ModelSource, UrlSource
from modelmora_registry.hosts import Hosts, entry_of
from modelmora_registry.hub import Hub
from modelmora_registry.s3 import S3
from modelmora_registry.sources import Plan, Sources, render_sums
from modelmora_registry.web import Web

WEIGHTS = "model.safetensors"
SECRET = "s3cr3t-" + "x" * 8


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return content(sentence_model(tmp_path / "roots" / "m"))


@pytest.fixture
def fake(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with hub(files) as fake:
        yield fake


Make = Callable[..., Artifacts]
inside = partial(Web, hosts=Hosts(("*", "127.0.0.1", "localhost")))
"""May ask this machine, where the servers of these tests are."""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Artifacts] = []

    def build(web: Web | None = None, *, quota_bytes: int = 0, endpoint: str = "", **s3: Any) -> Artifacts:
        web = web or inside()
        sources = Sources(
            model_roots=[tmp_path / "roots"],
            web=web,
            hub=Hub(web, endpoint=endpoint or None),
            s3=S3(web, endpoint=endpoint, **s3),
        )
        made.append(Artifacts(tmp_path / "artifacts", sources, quota_bytes=quota_bytes, concurrency=4))
        return made[-1]

    yield build
    for store in made:
        store.close()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def sums_of(files: Mapping[str, bytes]) -> bytes:
    return render_sums((path, f"sha256:{hashlib.sha256(each).hexdigest()}") for path, each in files.items()).encode()


def url_source(url: str, *files: str) -> ModelSource:
    return ModelSource(url=UrlSource(url=url, files=files))


def http(fake: FakeHub, *files: str) -> ModelSource:
    return url_source(f"{fake.url}/files/", *(files or sorted(fake.files)))


def repository() -> ModelSource:
    return ModelSource(hub=HubSource(repo_id="org/repo", commit=COMMIT))


async def fetch(store: Artifacts, source: ModelSource, uid: str = "u", progress: Progress | None = None) -> Fetched:
    plan = await store.planned(uid) or await store.plan(source)
    return await store.fetch(uid, plan, {}, progress or Progress())


def stored(fetched: Fetched) -> dict[str, bytes]:
    return content(Path(fetched.artifact.path))


# HTTP.


async def test_files_named_by_their_sums_come_over_http_and_must_match(make: Make, fake: FakeHub) -> None:
    wanted = dict(fake.files)
    fake.files["pytorch_model.bin"] = b"another format of the same weights"
    fake.files["SHA256SUMS"] = sums_of(fake.files)
    store, source = make(), url_source(f"{fake.url}/files")
    assert stored(await fetch(store, source)) == wanted
    fake.files["SHA256SUMS"] = sums_of({**fake.files, WEIGHTS: b"something else"})
    with pytest.raises(ChecksumMismatch):
        await fetch(store, source, "v")


async def test_without_sums_and_names_an_http_folder_is_not_found(make: Make, fake: FakeHub) -> None:
    for source in (url_source(f"{fake.url}/files"), http(fake, "config.json", "none.json")):
        with pytest.raises(SourceNotFound):
            await fetch(make(), source)


async def test_a_broken_download_goes_on_where_it_stopped_by_bytes(make: Make, fake: FakeHub) -> None:
    store = make()
    fake.truncate[WEIGHTS] = 40_000
    with pytest.raises(SourceUnavailable):
        await fetch(store, http(fake))
    progress = Progress()
    assert stored(await fetch(store, http(fake), progress=progress)) == fake.files
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])
    assert progress.written_bytes == sum(map(len, fake.files.values())) - 40_000 - sum(
        len(each) for path, each in fake.files.items() if path < WEIGHTS
    )


async def test_a_server_without_ranges_is_asked_for_the_whole_again(make: Make, fake: FakeHub) -> None:
    store, fake.ranges = make(), False
    fake.truncate[WEIGHTS] = 40_000
    with pytest.raises(SourceUnavailable):
        await fetch(store, http(fake))
    assert stored(await fetch(store, http(fake))) == fake.files
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS]) + 40_000


async def test_a_file_that_changed_since_the_plan_is_never_mixed_with_what_was_there(make: Make, fake: FakeHub) -> None:
    store = make()
    fake.truncate[WEIGHTS] = 40_000
    with pytest.raises(SourceUnavailable):
        await fetch(store, http(fake))
    fake.files[WEIGHTS] = safetensors(100_000, b"v")
    with pytest.raises(ChecksumMismatch, match="changed"):
        await fetch(store, http(fake))  # By the plan that lies with what was begun.
    await store.discard("u")
    assert stored(await fetch(store, http(fake))) == fake.files


async def test_a_source_that_drips_is_given_up_and_asked_anew(
    make: Make, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = SimpleNamespace(monotonic=lambda: float(fake.drips))  # as if each byte took one
    monkeypatch.setattr("modelmora_registry.web.time", seconds)
    for source in (http(fake), repository()):
        fake.drip = {WEIGHTS}
        store = make(endpoint=fake.url)
        with pytest.raises(SourceUnavailable, match="bytes in"):
            await fetch(store, source)
        fake.drip.clear()
        assert stored(await fetch(store, source)) == fake.files
        await store.discard("u")


async def test_a_first_byte_that_comes_alone_hides_no_pickle(make: Make, fake: FakeHub) -> None:
    fake.files["weights.dat"] = b"\x80\x04\x95"
    fake.drip = {"weights.dat"}
    with pytest.raises(UnsafeFile, match="pickle"):
        await fetch(make(), http(fake))


@pytest.mark.parametrize(
    "weights",
    [
        safetensors(100_000)[:60_000],
        safetensors(100_000)[:4],
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90000000\n",
    ],
)
async def test_weights_that_a_server_has_cut_off_are_refused_without_any_checksum(
    make: Make, fake: FakeHub, weights: bytes
) -> None:
    fake.files[WEIGHTS] = weights
    with pytest.raises(InvalidModelFiles, match=WEIGHTS):
        await fetch(make(), http(fake))


async def test_a_part_is_continued_only_where_something_tells_that_it_is_the_same_file(
    make: Make, fake: FakeHub
) -> None:
    store, fake.etags = make(), False
    fake.truncate[WEIGHTS] = 40_000
    with pytest.raises(SourceUnavailable):
        await fetch(store, http(fake))
    fake.files[WEIGHTS] = safetensors(100_000, b"v")
    assert stored(await fetch(store, http(fake))) == fake.files


async def test_another_part_than_asked_for_is_not_taken(make: Make, fake: FakeHub) -> None:
    store = make()
    fake.truncate[WEIGHTS] = 40_000
    with pytest.raises(SourceUnavailable):
        await fetch(store, http(fake))
    fake.wrong_part = True
    with pytest.raises(SourceUnavailable, match="another part"):
        await fetch(store, http(fake))


@pytest.mark.parametrize(
    ("status", "headers", "cls"),
    [
        (401, {}, SourceNotFound),
        (403, {}, SourceNotFound),
        (404, {}, SourceNotFound),
        (429, {"Retry-After": "7"}, SourceUnavailable),
        (500, {}, SourceUnavailable),
        (301, {}, SourceUnavailable),
        (302, {"Location": "http://[bad"}, SourceUnavailable),
        (302, {"Location": "ftp://127.0.0.1/x"}, SourceUnavailable),
    ],
)
async def test_what_a_server_answers_has_a_name(
    make: Make, fake: FakeHub, status: int, headers: dict[str, str], cls: type[ModelMoraError]
) -> None:
    store = make()
    plan = await store.plan(http(fake, WEIGHTS))
    for ask in (lambda: store.plan(http(fake, WEIGHTS)), lambda: store.fetch("u", plan, {}, Progress())):
        fake.refuse.append((status, headers))
        with pytest.raises(cls) as raised:
            await ask()
        assert raised.value.retry_after_seconds == (7 if headers.get("Retry-After") else None)
    fake.redirect_loop = True
    with pytest.raises(SourceUnavailable):
        await store.plan(http(fake, WEIGHTS))


async def test_a_token_goes_to_its_own_host_and_only_in_safety(make: Make, fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    fake.files_token = SECRET
    host = fake.url.removeprefix("http://")
    with pytest.raises(SourceNotFound, match="http_token_files"):
        await fetch(make(), http(fake))
    assert stored(await fetch(make(inside(token_files={host: tmp_path / "token"})), http(fake))) == fake.files
    fake.requests.clear()
    fake.refuse.append((302, {"Location": f"{fake.cdn_url}/files/{WEIGHTS}"}))
    with pytest.raises(SourceNotFound):  # The other port asks for a token too, and gets none.
        await make(inside(token_files={host: tmp_path / "token"})).plan(http(fake, WEIGHTS))
    assert [request[3] for request in fake.requests] == [f"Bearer {SECRET}", None]
    with pytest.raises(FailedPrecondition, match="https only") as raised:
        await make(inside(token_files={"files.test": tmp_path / "token"})).plan(url_source("http://files.test/a", "x"))
    assert SECRET not in str(raised.value)


async def test_offline_and_a_dead_port_are_told(make: Make, fake: FakeHub, s3: S3Server) -> None:
    for source in (http(fake), url_source("s3://b/a"), repository()):
        with pytest.raises(FailedPrecondition, match="offline"):
            await make(inside(offline=True), endpoint=s3.url).plan(source)
    for source in (url_source("http://127.0.0.1:9/a", "x"), url_source("s3://b/a"), repository()):
        with pytest.raises(SourceUnavailable):
            await make(endpoint="http://127.0.0.1:9").plan(source)
    assert fake.requests == []


async def test_a_proxy_is_asked_for_everything_and_its_password_told_to_nobody(
    make: Make, fake: FakeHub, files: dict[str, bytes]
) -> None:
    proxy = fake.url.replace("http://", f"http://user:{SECRET}@")
    assert stored(await fetch(make(inside(proxy=proxy)), url_source("http://files.test/files", *files))) == files
    assert {url for url, _ in fake.proxied} == {f"http://files.test/files/{path}" for path in files}
    assert None not in {authorization for _, authorization in fake.proxied}
    by_proxy = make(inside(proxy=proxy), endpoint="http://hub.test")
    assert stored(await fetch(by_proxy, repository(), "v")) == files
    assert "http://hub.test/api/models/org/repo/revision/" + COMMIT in {
        url.partition("?")[0] for url, _ in fake.proxied
    }
    assert (await make(endpoint=fake.url).plan(repository())).paths == set(files)  # No proxy again.
    dead = f"http://user:{SECRET}@127.0.0.1:9"
    for source in (http(fake), url_source("s3://b/a")):
        with pytest.raises(SourceUnavailable) as raised:
            await make(inside(proxy=dead), endpoint="http://s3.test").plan(source)
        assert SECRET not in repr(raised.value) + str(raised.value.metadata)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority's certificate, with the server's certificate and key beside it."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, name = tmp_path_factory.mktemp("ca"), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem"


async def test_a_private_authority_is_trusted_by_its_setting_only(
    make: Make, files: dict[str, bytes], authority: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority, authority.with_name("key.pem"))
    with hub(files, tls=tls) as fake:
        assert fake.url.startswith("https://")
        with pytest.raises(SourceUnavailable):
            await fetch(make(), http(fake))
        assert stored(await fetch(make(inside(ca_file=authority)), http(fake))) == files
        store = make(inside(ca_file=authority), endpoint=fake.url)
        assert (await store.plan(repository())).paths == set(files)
    with pytest.raises(FailedPrecondition, match="ca_file"):
        await make(inside(ca_file=authority.with_name("none.pem"))).plan(http(fake))


async def test_what_is_inside_is_asked_only_when_it_is_named(
    make: Make, fake: FakeHub, files: dict[str, bytes]
) -> None:
    """An import is no way to look around in the network: not by address, by name, by redirect or by the Hub."""
    by_name = fake.url.replace("127.0.0.1", "localhost")
    outside = Web()
    with pytest.raises(InvalidArgument, match="address inside") as raised:
        await make(outside).plan(http(fake))
    assert [found.field for found in raised.value.fields] == ["source.url.url"]
    for source in (url_source(f"{by_name}/files/", *files), repository()):
        with pytest.raises(FailedPrecondition, match="address inside"):
            await make(outside, endpoint=by_name).plan(source)
    assert fake.requests == []
    named = Web(hosts=Hosts(["127.0.0.1"]))
    assert (await make(named).plan(http(fake))).paths == set(files)
    port_alone = Web(hosts=Hosts(["*", entry_of(fake.url)]))
    assert (await make(port_alone).plan(http(fake))).paths == set(files)
    other = fake.cdn_url.replace("localhost", "127.0.0.1")
    with pytest.raises(InvalidArgument, match=f"name {entry_of(other)}"):
        await make(port_alone).plan(url_source(f"{other}/files/", *files))
    with pytest.raises(InvalidArgument, match="nowhere"):
        await make(outside).plan(url_source("http://files.example.org:99999/", *files))
    fake.requests.clear()
    fake.refuse.append((302, {"Location": f"{by_name}/files/{WEIGHTS}"}))
    with pytest.raises(FailedPrecondition, match="localhost"):
        await make(named).plan(http(fake, WEIGHTS))
    assert len(fake.requests) == 1
    with pytest.raises(FailedPrecondition, match="may not ask"):
        await make(named, endpoint="http://s3.example.org").plan(url_source("s3://b/a"))


# S3.


async def test_a_bucket_that_keeps_versions_is_read_as_it_was(
    make: Make, s3: S3Server, files: dict[str, bytes]
) -> None:
    s3.bucket("kept", {"config.json": b"{}"})
    s3.client.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    for path, each in files.items():
        s3.client.put_object(Bucket="kept", Key=path, Body=each, ACL="public-read")
    store = make(endpoint=s3.url)
    plan = await store.plan(url_source("s3://kept"))
    assert plan.source.url is not None
    recorded = plan.source.url.object_versions
    assert set(recorded) == set(files)
    for path in files:
        s3.client.put_object(Bucket="kept", Key=path, Body=b"another", ACL="public-read")
    s3.client.delete_object(Bucket="kept", Key="config.json")
    assert stored(await store.fetch("u", plan, {}, Progress())) == files
    # Also much later, as a lock does that names the source.
    again = await store.plan(ModelSource(url=plan.source.url.model_copy(update={"files": tuple(files)})))
    assert stored(await store.fetch("v", again, {}, Progress())) == files
    s3.client.delete_object(Bucket="kept", Key=WEIGHTS)
    much_later = await store.plan(plan.source)
    assert {file.path: file.version for file in much_later.files} == recorded
    s3.client.put_object(Bucket="kept", Key=WEIGHTS, Body=b"another", ACL="public-read")
    assert (await store.plan(url_source("s3://kept", WEIGHTS))).total_bytes == len(b"another")


async def test_an_object_from_before_a_bucket_kept_versions_is_pinned_by_its_etag(make: Make, s3: S3Server) -> None:
    s3.bucket("late", {WEIGHTS: b"1"})
    s3.client.put_bucket_versioning(Bucket="late", VersioningConfiguration={"Status": "Enabled"})
    plan = await make(endpoint=s3.url).plan(url_source("s3://late"))
    assert plan.source.url is not None
    assert plan.source.url.object_versions == {}
    assert plan.files[0].pin


async def test_a_prefix_of_a_bucket_becomes_a_snapshot(make: Make, s3: S3Server, files: dict[str, bytes]) -> None:
    extra = {"models/m/": b"", "models/m/pytorch_model.bin": b"x", "models/other/config.json": b"{}"}
    s3.bucket("plain", {**{f"models/m/{path}": each for path, each in files.items()}, **extra})
    store = make(endpoint=s3.url)
    fetched = await fetch(store, url_source("s3://plain/models/m"))
    assert stored(fetched) == files
    named = await fetch(store, url_source("s3://plain/models/m/", "config.json"), "v")
    assert stored(named) == {"config.json": files["config.json"]}


async def test_sums_beside_the_objects_are_promises(make: Make, s3: S3Server, files: dict[str, bytes]) -> None:
    s3.bucket("sums", {**files, "SHA256SUMS": sums_of({**files, WEIGHTS: b"another"})})
    with pytest.raises(ChecksumMismatch, match=WEIGHTS):
        await fetch(make(endpoint=s3.url), url_source("s3://sums"))


async def test_an_object_that_changed_since_the_plan_is_refused(
    make: Make, s3: S3Server, files: dict[str, bytes]
) -> None:
    s3.bucket("changing", files)
    store = make(endpoint=s3.url)
    plan = await store.plan(url_source("s3://changing"))
    s3.client.put_object(Bucket="changing", Key=WEIGHTS, Body=safetensors(100_000, b"v"), ACL="public-read")
    with pytest.raises(ChecksumMismatch, match="changed"):
        await store.fetch("u", plan, {}, Progress())


async def test_an_object_is_taken_from_where_an_earlier_attempt_stopped(
    make: Make, s3: S3Server, files: dict[str, bytes], tmp_path: Path
) -> None:
    s3.bucket("resumed", {WEIGHTS: files[WEIGHTS]})
    store, staging = make(endpoint=s3.url), tmp_path / "artifacts" / "staging" / "u"
    staging.mkdir(parents=True)
    (staging / "part").write_bytes(files[WEIGHTS][:60_000])
    progress = Progress()
    fetched = await fetch(store, url_source("s3://resumed"), progress=progress)
    assert stored(fetched) == {WEIGHTS: files[WEIGHTS]}
    assert (progress.done_bytes, progress.written_bytes) == (100_000, 40_000)


async def test_keys_open_what_is_private_and_are_read_anew_when_they_change(
    make: Make, s3: S3Server, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.bucket("private", files, public=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")  # Those of whoever started the server are not taken.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(SourceNotFound, match="s3_credentials_file"):
        await fetch(make(endpoint=s3.url), url_source("s3://private"))
    monkeypatch.delenv("AWS_PROFILE")
    assert stored(await fetch(make(endpoint=s3.url, ambient=True), url_source("s3://private"))) == files
    keys = tmp_path / "keys"
    store = make(endpoint=s3.url, credentials_file=keys)
    broken = f"[default]\naws_access_key_id = a\n{SECRET}\n"
    for text in (None, "", "[other]\n", broken, f"[default]\naws_secret_access_key = {SECRET}\n"):
        if text is not None:
            keys.write_text(text)
        with pytest.raises(FailedPrecondition, match="s3_credentials_file") as raised:
            await store.plan(url_source("s3://private"))
        assert SECRET not in str(raised.value)
    keys.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    os.utime(keys, (1, 1))
    assert stored(await fetch(store, url_source("s3://private"), "v")) == files


async def test_a_signed_address_stands_in_no_log(
    tmp_path: Path, s3: S3Server, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It opens the object for an hour."""
    s3.bucket("logged", files, public=False)
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    caplog.set_level(logging.DEBUG)
    settings = registry_main.Settings(s3_endpoint=s3.url, s3_credentials_file=tmp_path / "keys")
    store = Artifacts(tmp_path / "artifacts", registry_main.sources_of(settings))
    try:
        assert stored(await fetch(store, url_source("s3://logged"))) == files
    finally:
        store.close()
    assert "Signature" not in caplog.text
    assert "Authorization" not in caplog.text


async def test_poisoned_keys_are_refused(make: Make, s3: S3Server) -> None:
    store = make(endpoint=s3.url)
    table: list[tuple[list[str], type[ModelMoraError]]] = [
        (["../evil.json"], UnsafeFile),
        (["a//b.json"], UnsafeFile),
        (["nul.json"], UnsafeFile),
        (["a.json", "a.json/b.json"], UnsafeFile),
        (["pytorch_model.bin"], UnsafeFile),
        (["train.py"], SourceNotFound),
        ([], SourceNotFound),
    ]
    for number, (keys, cls) in enumerate(table):
        s3.bucket(f"bad{number}", {f"m/{key}": b"x" for key in keys})
        with pytest.raises(cls):
            await store.plan(url_source(f"s3://bad{number}/m"))
    with pytest.raises(SourceNotFound):
        await store.plan(url_source("s3://no-such-bucket/m"))


# Room.


async def test_one_content_wanted_at_once_is_downloaded_once(make: Make, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    store = make(endpoint=fake.url)
    plan = await store.plan(repository())
    progress = [Progress() for _ in range(4)]
    running = [asyncio.create_task(store.fetch(f"u{n}", plan, {}, each)) for n, each in enumerate(progress)]
    await asyncio.to_thread(fake.half_sent.wait, 20)
    waiting = store._turns._changed._waiters  # type: ignore[attr-defined]
    half = len(fake.files[WEIGHTS]) // 2
    await asyncio.to_thread(until, lambda: len(waiting) == len(progress) - 1 or fake.sent_bytes[WEIGHTS] > half)
    fake.hold.pop(WEIGHTS).set()
    assert [stored(each) for each in await asyncio.gather(*running)] == [fake.files] * 4
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])


async def test_an_import_that_waits_for_anothers_download_can_be_cancelled(make: Make, fake: FakeHub) -> None:
    fake.hold[WEIGHTS] = threading.Event()
    store = make(endpoint=fake.url)
    plan = await store.plan(repository())
    first = asyncio.create_task(store.fetch("u1", plan, {}, Progress()))
    await asyncio.to_thread(fake.half_sent.wait, 20)
    progress = Progress()
    second = asyncio.create_task(store.fetch("u2", plan, {}, progress))
    await asyncio.to_thread(until, lambda: progress.current_file == WEIGHTS)
    progress.cancel()
    with pytest.raises(Cancelled):
        await second
    fake.hold.pop(WEIGHTS).set()
    assert stored(await first) == fake.files


async def test_the_quota_is_told_before_the_first_byte_and_counts_shared_bytes_once(
    make: Make, fake: FakeHub, tmp_path: Path
) -> None:
    size = sum(map(len, fake.files.values()))
    store = make(endpoint=fake.url, quota_bytes=size + 50_000)
    plan = await store.plan(repository())
    before = dict(fake.sent_bytes)
    first = await store.fetch("u1", plan, {}, Progress())
    second = await store.fetch("u2", plan, {}, Progress())
    assert first.artifact.digest == second.artifact.digest
    on_disk = {path.stat().st_ino: path.stat().st_size for path in below(tmp_path / "artifacts")}
    assert await store.used_bytes() == sum(on_disk.values()) == size
    fake.files[WEIGHTS] = safetensors(100_000, b"v")
    other = await store.plan(repository())
    sent = dict(fake.sent_bytes)
    for refused in (store.check_room(other), store.fetch("u3", other, {}, Progress())):
        with pytest.raises(StorageFull, match="storage_quota_bytes") as raised:
            await refused
        told = {key: int(number) for key, number in raised.value.metadata.items()}
        assert told["need_bytes"] >= 100_000
        assert (told["quota_bytes"], told["used_bytes"]) == (size + 50_000, size)
    assert fake.sent_bytes == sent
    assert sent != before
    await store.discard("u1")
    await store.discard("u2")
    assert stored(await store.fetch("u3", other, {}, Progress())) == fake.files


async def test_a_folder_whose_contents_are_here_needs_no_room(make: Make, tmp_path: Path) -> None:
    """Its digests are not known before it is read, so it is read when only that can make room."""
    files = sentence_model(tmp_path / "roots" / "one")
    source = ModelSource(local=LocalSource(path=str(files)))
    first = await fetch(make(), source)
    twin = sentence_model(tmp_path / "roots" / "two")
    store = make(quota_bytes=first.artifact.size_bytes)
    plan = await store.check_room(await store.plan(ModelSource(local=LocalSource(path=str(twin)))))
    fetched = await store.fetch("v", plan, {}, Progress())
    assert fetched.artifact.digest == first.artifact.digest
    assert await store.used_bytes() == first.artifact.size_bytes
    (twin / WEIGHTS).write_bytes(safetensors(100_000, b"v"))  # as long, and another
    with pytest.raises(StorageFull):
        await store.check_room(await store.plan(ModelSource(local=LocalSource(path=str(twin)))))


async def test_an_import_at_work_keeps_its_room_until_it_has_written_it(make: Make, fake: FakeHub) -> None:
    size = sum(map(len, fake.files.values()))
    store = make(endpoint=fake.url, quota_bytes=size + 60_000)
    fake.hold[WEIGHTS] = threading.Event()
    plan = await store.plan(repository())
    first = asyncio.create_task(store.fetch("u1", plan, {}, Progress()))
    await asyncio.to_thread(fake.half_sent.wait, 20)
    fresh = tuple(replace(file, sha256=None) for file in plan.files)
    with pytest.raises(StorageFull):
        await store.check_room(Plan(plan.source, fresh))
    fake.hold.pop(WEIGHTS).set()
    await first


@pytest.fixture
def no_links(tmp_path: Path) -> Iterator[Path]:
    """Blobs on another file system than snapshots: no hard link leads from here to there."""
    import tempfile

    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        assert not os.environ.get("CI"), "needs /dev/shm as a file system of its own"
        pytest.skip("needs /dev/shm as a file system of its own")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        (tmp_path / "artifacts").mkdir()
        (tmp_path / "artifacts" / "blobs").symlink_to(folder)
        yield tmp_path / "artifacts"


async def test_without_hard_links_snapshots_are_copies_of_what_is_here(
    make: Make, fake: FakeHub, no_links: Path
) -> None:
    store = make(endpoint=fake.url)
    plan = await store.plan(repository())
    first, second = [await store.fetch(uid, plan, {}, Progress()) for uid in ("u1", "u2")]
    assert stored(first) == stored(second) == fake.files
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])
    assert {(Path(each.artifact.path) / WEIGHTS).stat().st_nlink for each in (first, second)} == {1}
    assert {path.stat().st_mode & 0o777 for path in below(Path(second.artifact.path))} == {0o444}
    assert await store.used_bytes() == 2 * sum(map(len, fake.files.values()))
    await store.discard("u1", {file.sha256 for file in first.artifact.files})
    third = await store.fetch("u3", plan, {}, Progress())  # By the note of the second.
    assert stored(third) == stored(second) == fake.files
    assert fake.sent_bytes[WEIGHTS] == len(fake.files[WEIGHTS])
    (Path(third.artifact.path) / WEIGHTS).chmod(0o644)
    (Path(third.artifact.path) / WEIGHTS).write_bytes(b"rotten" * 20_000)
    await store.discard("u2")
    assert stored(await store.fetch("u4", plan, {}, Progress())) == fake.files
    for uid in ("u3", "u4"):
        await store.discard(uid)
    assert below(no_links) == []


async def test_promises_beside_local_files_are_kept_and_are_no_files_of_the_model(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "roots" / "local"
    sentence_model(folder)
    files, source = content(folder), ModelSource(local=LocalSource(path=str(folder)))
    (folder / "SHA256SUMS").write_bytes(sums_of(files))
    store = make()
    assert stored(await fetch(store, source)) == files
    await store.discard("u")  # What is here with the promised content would be taken in place of the folder's.
    (folder / WEIGHTS).write_bytes(safetensors(100_000, b"v"))
    with pytest.raises(ChecksumMismatch):
        await fetch(make(), source, "v")
    with pytest.raises(InvalidArgument):
        await make().plan(ModelSource(local=LocalSource(path=str(tmp_path))))
