"""Who calls: from call metadata to a Caller, and the file of token hashes.

A token is `mm_<id>_<secret>`; the file keeps its id and the SHA-256 of the whole (256 random bits need no slow hash).
Without a token file every caller is admin, which the host allows on loopback only. Once a file is there the door never
opens again by itself: a file that is emptied or removed while the platform runs leaves nobody in. The file is looked at
once a second, so a revoked token works a second longer at most; a token that is not known is looked for at once.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from modelmora.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated

log = logging.getLogger(__name__)


class Role(enum.Enum):
    ADMIN = "admin"
    OPERATOR = "operator"
    CLIENT = "client"
    SERVICE = "service"


READERS = frozenset(Role)
OPERATORS = frozenset({Role.ADMIN, Role.OPERATOR, Role.SERVICE})
ADMINS = frozenset({Role.ADMIN})
SERVICES = frozenset({Role.SERVICE, Role.ADMIN})
ANYONE: frozenset[Role] = frozenset()
"""No token needed: the standard health protocol only."""

DEFAULT_TENANT = "default"
SUBTENANT_KEY = "x-modelmora-subtenant"
PEER_KEY = "x-modelmora-peer"
LOOK_SECONDS = 1.0
"""So long after a change of the file a running platform has seen it."""
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
SLUG_RULE = "must be letters, digits, `-` and `_`, at most 63"


class TokenMissing(Unauthenticated):
    """No token came with the call; send it as `authorization: Bearer …`."""


class TokenInvalid(Unauthenticated):
    """The token that came with the call is not known."""


class TokenExpired(Unauthenticated):
    """The token that came with the call has expired."""


class TokenNotFound(NotFound):
    """No token has this id."""


class TokenFileUnreadable(FailedPrecondition):
    """The file of tokens cannot be read."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. The tenant comes from the token; only a sub-tenant comes from the call."""

    subject: str
    tenant: str
    roles: frozenset[Role]
    internal: bool = False
    """A context of this very process."""

    def require(self, allowed: frozenset[Role]) -> None:
        """Raises PermissionDenied unless one of the caller's roles is allowed."""
        if allowed is not ANYONE and self.roles.isdisjoint(allowed):
            names = ", ".join(sorted(role.value for role in allowed))
            raise PermissionDenied(f"this call needs one of the roles {names}", subject=self.subject)


NOBODY = Caller("", "", frozenset())
EVERYONE = Caller("everyone", DEFAULT_TENANT, frozenset({Role.ADMIN}))

_caller: ContextVar[Caller] = ContextVar("modelmora_caller", default=NOBODY)


def current_caller() -> Caller:
    """The caller of the RPC that this task serves; NOBODY outside of one."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """For the interceptor, and for tests of servicers without a server."""
    _caller.set(caller)


class Authenticator(Protocol):
    """From the metadata of a call to its Caller; mutual TLS will be another one."""

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Caller:
        """Raises TokenMissing, TokenInvalid or TokenExpired."""

    @property
    def is_open(self) -> bool:
        """Whether everyone is let in as admin."""


@dataclass(frozen=True)
class Token:
    """One line of the token file. The secret is not in it."""

    id: str
    sha256: str
    role: Role
    tenant: str
    subject: str
    create_time: datetime
    expire_time: datetime | None

    def expired(self, now: datetime) -> bool:
        return self.expire_time is not None and now >= self.expire_time


class TokenFile:
    """Authenticates by a file of token hashes, read again whenever it changes."""

    def __init__(
        self, path: Path, *, required: bool, peer_key: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`required`: a missing file is an error instead of an open door. `peer_key` is what contexts of this process
        show each other. Raises TokenFileUnreadable."""
        self._path = path
        self._clock = clock
        self._next_look = 0.0
        self._peer_key = peer_key.encode()
        self._peer = Caller("peer", DEFAULT_TENANT, frozenset({Role.SERVICE}), internal=True)
        self._tokens: Mapping[str, Token] = {}
        self._callers: dict[str, Caller] = {}
        self._seen: tuple[int, ...] | None = None
        self._closed = required
        if required and not path.exists():
            raise TokenFileUnreadable(f"the token file {path} does not exist; `modelmora token create` makes one")
        self._refresh(first=True)

    @property
    def is_open(self) -> bool:
        self._look()
        return not self._closed

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Caller:
        peer_key = metadata.get(PEER_KEY)
        if peer_key is not None:
            shown = peer_key.encode() if isinstance(peer_key, str) else peer_key
            if not hmac.compare_digest(shown, self._peer_key):
                raise TokenInvalid()
            return self._peer
        self._look()
        caller = self._bearer(metadata.get("authorization")) if self._closed else EVERYONE
        subtenant = metadata.get(SUBTENANT_KEY)
        if subtenant is None:
            return caller
        return narrowed(caller, subtenant if isinstance(subtenant, str) else subtenant.decode("latin-1"))

    def _bearer(self, header: str | bytes | None) -> Caller:
        text = header.decode("latin-1") if isinstance(header, bytes) else header
        if not text:
            raise TokenMissing()
        scheme, _, shown = text.partition(" ")
        if scheme.lower() != "bearer" or not shown.strip():
            raise TokenMissing("the authorization header must be `Bearer <token>`")
        shown = shown.strip()
        if id_of(shown) not in self._tokens:
            self._refresh()  # it may have been made this very second
        token = self._tokens.get(id_of(shown))
        # An unknown id is compared too, so that the time does not tell which ids exist.
        known = token.sha256 if token is not None else "0" * 64
        if not hmac.compare_digest(_digest(shown), known) or token is None:
            raise TokenInvalid()
        if token.expired(datetime.now(UTC)):
            raise TokenExpired(expire_time=token.expire_time)
        return self._callers[token.id]

    def _look(self) -> None:
        if self._clock() >= self._next_look:
            self._refresh()

    def _refresh(self, *, first: bool = False) -> None:
        self._next_look = self._clock() + LOOK_SECONDS
        try:
            seen = os.stat(self._path)
        except OSError:
            if self._closed and self._tokens:
                log.error("the token file %s is gone; nobody is let in", self._path)
            self._tokens, self._callers, self._seen = {}, {}, None
            return
        signature = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
        if signature == self._seen:
            return
        self._closed = True
        self._seen = signature
        try:
            tokens = _read(self._path)
        except TokenFileUnreadable as error:
            if first:
                raise
            log.error("%s; the tokens read before stay valid", error)
            return
        self._tokens = {token.id: token for token in tokens}
        self._callers = {token.id: Caller(token.subject, token.tenant, frozenset({token.role})) for token in tokens}


def narrowed(caller: Caller, subtenant: str) -> Caller:
    """`caller` acting for one part of its tenant: `acme/research`. Raises InvalidArgument."""
    if not _SLUG.fullmatch(subtenant):
        raise InvalidArgument.at(SUBTENANT_KEY, SLUG_RULE)
    return replace(caller, tenant=f"{caller.tenant}/{subtenant}")


def may_be_tenant(name: str) -> bool:
    """Whether a caller can have this tenant: `acme`, or a part of it, `acme/research`."""
    parts = name.split("/")
    return len(parts) <= 2 and all(_SLUG.fullmatch(part) for part in parts)


def new_peer_key() -> str:
    """The identity of this start; never logged or written."""
    return secrets.token_urlsafe(32)


# The file.


def create_token(
    path: Path,
    *,
    role: Role | str,
    tenant: str = DEFAULT_TENANT,
    subject: str = "",
    expires: timedelta | None = None,
    now: datetime | None = None,
) -> str:
    """Adds a token to the file (made with mode 0600 where there is none) and returns it: it is shown only now.

    Raises InvalidArgument, TokenFileUnreadable.
    """
    now = now or datetime.now(UTC)
    try:
        role = Role(role)
    except ValueError as error:
        raise InvalidArgument.at("role", f"must be one of {', '.join(known.value for known in Role)}") from error
    if not _SLUG.fullmatch(tenant):
        raise InvalidArgument.at("tenant", SLUG_RULE)
    if len(subject) > 200 or not subject.isprintable():
        raise InvalidArgument.at("subject", "must be at most 200 printable characters")
    if expires is not None and expires <= timedelta():
        raise InvalidArgument.at("expires", "must be a time to come")
    token_id = secrets.token_hex(6)
    text = f"mm_{token_id}_{secrets.token_urlsafe(32)}"
    token = Token(
        id=token_id,
        sha256=_digest(text),
        role=role,
        tenant=tenant,
        subject=subject or f"{role.value}-{token_id}",
        create_time=now,
        expire_time=now + expires if expires is not None else None,
    )
    with _locked(path):
        _write(path, [*(_read(path) if path.exists() else ()), token])
    return text


def list_tokens(path: Path) -> Sequence[Token]:
    """Every token of the file; none where there is no file. Raises TokenFileUnreadable."""
    return _read(path) if path.exists() else []


def revoke_token(path: Path, token_id: str) -> None:
    """Takes a token out of the file; a running platform notices within a second. Raises TokenNotFound."""
    with _locked(path):
        tokens = _read(path) if path.exists() else []
        if token_id not in {token.id for token in tokens}:
            raise TokenNotFound(f"no token has the id {token_id}")
        _write(path, [token for token in tokens if token.id != token_id])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> list[Token]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_token(row) for row in content["tokens"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenFileUnreadable(f"the token file {path} cannot be read: {error!r}") from error


def _token(row: Mapping[str, Any]) -> Token:
    expire_time = row.get("expire_time")
    token = Token(
        id=row["id"],
        sha256=row["sha256"],
        role=Role(row["role"]),
        tenant=row["tenant"],
        subject=row["subject"],
        create_time=_time(row["create_time"]),
        expire_time=_time(expire_time) if expire_time is not None else None,
    )
    if not re.fullmatch(r"[0-9a-f]{64}", token.sha256) or not re.fullmatch(r"[0-9a-f]+", token.id):
        raise ValueError("a token's id and sha256 are hexadecimal")
    return token


def _time(text: str) -> datetime:
    time_read = datetime.fromisoformat(text)
    if time_read.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return time_read


def _write(path: Path, tokens: Iterable[Token]) -> None:
    rows = [
        {
            "id": token.id,
            "sha256": token.sha256,
            "role": token.role.value,
            "tenant": token.tenant,
            "subject": token.subject,
            "create_time": token.create_time.isoformat(),
            "expire_time": token.expire_time.isoformat() if token.expire_time else None,
        }
        for token in tokens
    ]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"tokens": rows}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def id_of(token: str) -> str:
    """The id in a token's text, by which it is listed and revoked."""
    parts = token.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "mm" else ""


def read_service_token(path: Path) -> str:
    """The token this process shows to contexts elsewhere. Raises TokenFileUnreadable."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileUnreadable(f"the service token file {path} cannot be read: {error}") from error
