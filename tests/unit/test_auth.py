"""Tokens and roles: who gets in, as whom, and who does not."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes import FakeClock
from modelmora.errors import InvalidArgument, PermissionDenied, Unauthenticated
from modelmora_runtime import auth
from modelmora_runtime.auth import ADMINS, ANYONE, EVERYONE, OPERATORS, READERS, SERVICES, Caller, Role, TokenFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def opened(path: Path, *, required: bool = False, clock: Callable[[], float] | None = None) -> TokenFile:
    """Time passes: every look at the clock is two seconds after the one before, unless the test has its own."""
    clock = clock or itertools.count(0, 2).__next__
    return TokenFile(path, required=required, peer_key="the-key-of-this-start", clock=clock)


def bearer(token: str) -> dict[str, str | bytes]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_names_its_caller(path: Path) -> None:
    token = auth.create_token(path, role="client", tenant="acme", subject="crawler")
    caller = opened(path).authenticate(bearer(token))
    assert caller == Caller("crawler", "acme", frozenset({Role.CLIENT}))


def test_the_file_keeps_no_secret_and_is_private(path: Path) -> None:
    token = auth.create_token(path, role="admin")
    assert token not in path.read_text()
    assert token.split("_", 2)[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({}, auth.TokenMissing),
        ({"authorization": ""}, auth.TokenMissing),
        ({"authorization": "Basic abc"}, auth.TokenMissing),
        ({"authorization": "Bearer "}, auth.TokenMissing),
        ({"authorization": "Bearer wrong"}, auth.TokenInvalid),
        ({"authorization": "Bearer mm_00_wrong"}, auth.TokenInvalid),
        ({"authorization": b"Bearer \xff\xfe"}, auth.TokenInvalid),
        ({auth.PEER_KEY: "wrong"}, auth.TokenInvalid),
        ({auth.PEER_KEY: ""}, auth.TokenInvalid),
    ],
)
def test_missing_and_wrong_tokens_are_told_apart(
    path: Path, metadata: dict[str, str | bytes], error: type[Unauthenticated]
) -> None:
    auth.create_token(path, role="admin")
    with pytest.raises(error):
        opened(path).authenticate(metadata)


def test_a_token_of_a_known_id_with_another_secret_is_invalid(path: Path) -> None:
    token = auth.create_token(path, role="admin")
    with pytest.raises(auth.TokenInvalid):
        opened(path).authenticate(bearer(token[:-1] + ("A" if token[-1] != "A" else "B")))


def test_an_expired_token_is_expired_and_only_with_its_secret(path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    token = auth.create_token(path, role="admin", expires=timedelta(hours=1), now=long_ago)
    with pytest.raises(auth.TokenExpired):
        opened(path).authenticate(bearer(token))
    with pytest.raises(auth.TokenInvalid):
        opened(path).authenticate(bearer(token + "x"))
    fresh = auth.create_token(path, role="admin", expires=timedelta(hours=1))
    assert opened(path).authenticate(bearer(fresh)).roles == {Role.ADMIN}


def test_without_a_file_everyone_is_admin(path: Path) -> None:
    authenticator = opened(path)
    assert authenticator.is_open
    assert authenticator.authenticate({}) == EVERYONE
    assert authenticator.authenticate(bearer("whatever")) == EVERYONE


def test_a_file_that_appears_closes_the_door(path: Path) -> None:
    authenticator = opened(path)
    token = auth.create_token(path, role="operator")
    with pytest.raises(auth.TokenMissing):
        authenticator.authenticate({})
    assert authenticator.authenticate(bearer(token)).roles == {Role.OPERATOR}


def test_revoking_the_last_token_leaves_nobody_in(path: Path) -> None:
    token = auth.create_token(path, role="admin")
    authenticator = opened(path)
    auth.revoke_token(path, auth.list_tokens(path)[0].id)
    with pytest.raises(auth.TokenInvalid):
        authenticator.authenticate(bearer(token))
    assert not authenticator.is_open


def test_the_file_is_looked_at_once_a_second_and_for_a_token_that_is_not_known(path: Path) -> None:
    clock = FakeClock()
    token = auth.create_token(path, role="admin")
    authenticator = opened(path, clock=lambda: clock.now)
    auth.revoke_token(path, auth.list_tokens(path)[0].id)
    clock.advance(0.9)
    assert authenticator.authenticate(bearer(token)).roles == {Role.ADMIN}
    clock.advance(0.2)
    with pytest.raises(auth.TokenInvalid):
        authenticator.authenticate(bearer(token))
    fresh = auth.create_token(path, role="client")
    assert authenticator.authenticate(bearer(fresh)).roles == {Role.CLIENT}


def test_removing_the_file_leaves_nobody_in(path: Path) -> None:
    token = auth.create_token(path, role="admin")
    authenticator = opened(path)
    path.unlink()
    with pytest.raises(auth.TokenInvalid):
        authenticator.authenticate(bearer(token))
    with pytest.raises(auth.TokenMissing):
        authenticator.authenticate({})


def test_a_broken_file_keeps_what_was_read_before(path: Path) -> None:
    token = auth.create_token(path, role="admin")
    authenticator = opened(path)
    path.write_text("{")
    assert authenticator.authenticate(bearer(token)).roles == {Role.ADMIN}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tokens": [{}]}', '{"tokens": [{"id": "a", "sha256": "b"}]}', '{"tokens": 7}']
)
def test_a_broken_file_stops_the_start(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(auth.TokenFileUnreadable):
        opened(path)


def test_a_required_file_must_be_there(path: Path) -> None:
    with pytest.raises(auth.TokenFileUnreadable):
        opened(path, required=True)


def test_a_new_token_is_seen_at_the_next_call_even_within_one_clock_tick(path: Path) -> None:
    auth.create_token(path, role="admin")
    authenticator = opened(path)
    before = path.stat()
    token = auth.create_token(path, role="client")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert authenticator.authenticate(bearer(token)).roles == {Role.CLIENT}


def test_the_peer_key_is_a_service_of_this_process(path: Path) -> None:
    auth.create_token(path, role="admin")
    caller = opened(path).authenticate({auth.PEER_KEY: "the-key-of-this-start"})
    assert caller.internal
    assert caller.roles == {Role.SERVICE}


def test_a_header_narrows_the_tenant_and_never_changes_it(path: Path) -> None:
    token = auth.create_token(path, role="client", tenant="acme")
    authenticator = opened(path)
    assert authenticator.authenticate({**bearer(token), auth.SUBTENANT_KEY: "lab"}).tenant == "acme/lab"
    for bad in ("", "a/b", "../other", "a b", "x" * 64, "ä"):
        with pytest.raises(InvalidArgument):
            authenticator.authenticate({**bearer(token), auth.SUBTENANT_KEY: bad})


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.ADMIN, {"readers", "operators", "admins", "services"}),
        (Role.OPERATOR, {"readers", "operators"}),
        (Role.CLIENT, {"readers"}),
        (Role.SERVICE, {"readers", "operators", "services"}),
    ],
)
def test_roles_allow_what_they_say(role: Role, allowed: set[str]) -> None:
    sets = {"readers": READERS, "operators": OPERATORS, "admins": ADMINS, "services": SERVICES}
    caller = Caller("x", "t", frozenset({role}))
    for name, needed in sets.items():
        if name in allowed:
            caller.require(needed)
        else:
            with pytest.raises(PermissionDenied):
                caller.require(needed)
    caller.require(ANYONE)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"role": "king"}, "role"),
        ({"role": "admin", "tenant": "a b"}, "tenant"),
        ({"role": "admin", "tenant": ""}, "tenant"),
        ({"role": "admin", "expires": timedelta(0)}, "expires"),
        ({"role": "admin", "subject": "a\nb"}, "subject"),
    ],
)
def test_a_wrong_token_is_not_made(path: Path, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        auth.create_token(path, **arguments)  # type: ignore[arg-type]
    assert raised.value.fields[0].field == field
    assert not path.exists()


def test_tokens_are_listed_and_revoked_by_id(path: Path) -> None:
    auth.create_token(path, role="admin", subject="one")
    auth.create_token(path, role="client", subject="two")
    assert [token.subject for token in auth.list_tokens(path)] == ["one", "two"]
    auth.revoke_token(path, auth.list_tokens(path)[0].id)
    assert [token.subject for token in auth.list_tokens(path)] == ["two"]
    with pytest.raises(auth.TokenNotFound):
        auth.revoke_token(path, "nothing")
    assert json.loads(path.read_text())["tokens"][0]["subject"] == "two"


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("acme", True),
        ("acme/research", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("", False),
        ("acme/", False),
        ("/research", False),
        ("acme/research/one", False),
        ("acme\n", False),
        ("テナント", False),
    ],
)
def test_a_name_that_no_caller_can_have_is_told_from_a_tenants(name: str, possible: bool) -> None:
    assert auth.may_be_tenant(name) is possible
