"""HTTP as the registry reads it: one client with the proxy and the authorities of the settings, downloads that go on at
an offset, notice a source that hardly drips, and can be ended from another thread.

Everything here blocks and runs in the registry's file threads. What a token opens is sent to its own host only, and no
URL, header or proxy is ever part of an error: redirects carry signatures, and proxies passwords.
"""

from __future__ import annotations

import email.utils
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelmora.errors import (
    ChecksumMismatch,
    FailedPrecondition,
    ModelMoraError,
    SourceNotFound,
    SourceUnavailable,
)

from modelmora_registry.hosts import Hosts, guarded, place_of

READ_TIMEOUT_SECONDS = 30.0
STALL_SECONDS = 30.0
STALL_BYTES = 16 * 1024
"""A source that sends less in STALL_SECONDS is taken for broken: asked anew it may answer from a healthier machine."""
MAX_REDIRECTS = 10
_AS_IT_IS = {"Accept-Encoding": "identity"}
"""Sizes, ranges and digests are those of the bytes as they are, so no compression on the way."""
MAX_RETRY_AFTER_SECONDS = 3600.0


@dataclass(frozen=True)
class Asked:
    """What is asked of whom, in the words of an error."""

    who: str
    """`the Hub`, `files.example.org`"""
    what: str
    hint: str = ""
    """What to change when it is refused."""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Download:
    """The bytes of one file from `offset` on. `abort` may be called from another thread and ends a blocked read."""

    def __init__(
        self,
        chunks: Iterator[bytes],
        offset: int,
        abort: Callable[[], None],
        asked: Asked,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.offset = offset
        self.abort = abort
        self._chunks = chunks
        self._asked = asked
        self._stall_seconds = stall_seconds

    def chunks(self) -> Iterator[bytes]:
        """As they come from the network: gathered into larger ones, what came before a break would be lost."""
        began, got_bytes = time.monotonic(), 0
        with source_errors(self._asked):
            for chunk in self._chunks:
                yield chunk
                got_bytes += len(chunk)
                if (now := time.monotonic()) - began >= self._stall_seconds:
                    if got_bytes < STALL_BYTES:
                        raise unavailable(
                            self._asked, f"{self._asked.who} sent {got_bytes} bytes in {now - began:.0f} s"
                        )
                    began, got_bytes = now, 0


@dataclass(frozen=True)
class Told:
    """What a server says of a file without sending it."""

    size_bytes: int
    pin: str
    """Changes with the content: the ETag, else the time of the last change; empty when the server tells neither."""


class Web:
    """`proxy` None: as the environment says. `ca_file` None: the system's authorities. Tokens are files by `host` or
    `host:port`, read for each use. `hosts` None: all that have public addresses."""

    def __init__(
        self,
        *,
        proxy: str | None = None,
        ca_file: Path | None = None,
        offline: bool = False,
        token_files: Mapping[str, Path] | None = None,
        hosts: Hosts | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.proxy = proxy
        self.ca_file = ca_file
        self._offline = offline
        self._token_files = dict(token_files or {})
        self._hosts = hosts or Hosts()
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._client: Any = None

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()

    def check_online(self) -> None:
        if self._offline:
            raise FailedPrecondition("the registry is set offline (registry.offline); no source is asked")

    def check_host(self, url: str) -> None:
        """Raises FailedPrecondition for a URL whose host may not be asked, as far as its name tells."""
        try:
            host, port = place_of(url)
        except ValueError as error:
            raise FailedPrecondition(f"{url} leads nowhere: {error}") from None
        self._hosts.check(host, port)

    def new_client(self, **options: Any) -> Any:
        """An httpx2 client as the settings want it."""
        import httpx2  # 0.1 s that a platform without remote sources need not pay

        verify: Any = True
        if self.ca_file is not None:
            import ssl

            try:
                verify = ssl.create_default_context(cafile=str(self.ca_file))
            except OSError as error:
                raise FailedPrecondition(f"registry.ca_file cannot be read: {error.strerror or error}") from None
        client = httpx2.Client(
            proxy=self.proxy, verify=verify, follow_redirects=True, max_redirects=MAX_REDIRECTS, **options
        )
        return guarded(client, self._hosts)

    def tell(self, url: str, asked: Asked) -> Told:
        """Asks for the size and the pin of a file. SourceNotFound, SourceUnavailable."""
        with source_errors(asked), self._response("HEAD", url, {**self._headers(url), **_AS_IT_IS}, asked) as response:
            length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            raise unavailable(asked, f"{asked.who} does not tell the size of {asked.what}")
        return Told(int(length), _pin(response.headers))

    def read(self, url: str, asked: Asked, *, max_bytes: int) -> bytes:
        """A small file whole."""
        with self.open(url, asked) as download:
            content = b""
            for chunk in download.chunks():
                content += chunk
                if len(content) > max_bytes:
                    raise unavailable(asked, f"{asked.what} is larger than {max_bytes} bytes")
            return content

    @contextmanager
    def open(
        self,
        url: str,
        asked: Asked,
        *,
        headers: Mapping[str, str] | None = None,
        offset: int = 0,
        pin: str = "",
    ) -> Iterator[Download]:
        """Opens a file at `offset` or, where the server does not know ranges, at 0: read `Download.offset`.

        `headers` None: with the token of this host. `pin`: what `tell` said; when the server has another content by now
        it is ChecksumMismatch. Else SourceNotFound, SourceUnavailable with the delay that the server asks for.
        """
        sent = {**(self._headers(url) if headers is None else headers), **_AS_IT_IS}
        if offset:
            sent["Range"] = f"bytes={offset}-"
            if pin.startswith('"'):
                sent["If-Range"] = pin
        with ExitStack() as stack:
            with source_errors(asked):
                response = stack.enter_context(self._response("GET", url, sent, asked))
            if pin and (found := _pin(response.headers)) != pin and found:
                raise changed(asked)
            is_part = response.status_code == 206
            if is_part and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise unavailable(asked, f"{asked.who} sent another part of {asked.what} than was asked for")
            # Outside of the wrapper: what goes wrong where the bytes are written is no fault of the source.
            yield Download(
                response.iter_raw(),
                offset if is_part else 0,
                lambda: _abort(response),
                asked,
                self._stall_seconds,
            )

    @contextmanager
    def _response(self, method: str, url: str, headers: Mapping[str, str], asked: Asked) -> Iterator[Any]:
        self.check_online()
        with self._lock:
            if self._client is None:
                self._client = self.new_client(timeout=READ_TIMEOUT_SECONDS)
        with self._client.stream(method, url, headers=headers) as response:
            if response.status_code not in (200, 206):  # A redirect that leads nowhere is no file either.
                raise refusal(response.status_code, response.headers, asked)
            yield response

    def _headers(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        file = self._token_files.get(parts.netloc) or self._token_files.get(parts.hostname or "")
        if file is None:
            return {}
        if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
            raise FailedPrecondition(f"the token of {parts.hostname} is sent over https only")
        return {"Authorization": f"Bearer {read_secret(file, 'registry.http_token_files')}"}


def read_secret(file: Path, setting: str) -> str:
    """The token in a file of the settings; empty when there is none in it."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{setting} cannot be read: {type(error).__name__}") from None
    if not token.isprintable() or " " in token:
        raise FailedPrecondition(f"{setting} holds something else than one token")
    return token


def refusal(status: int, headers: Mapping[str, str], asked: Asked) -> ModelMoraError:
    """What a status means that brings no file."""
    if status in (401, 403, 404, 410):
        hint = f"; {asked.hint}" if asked.hint and status in (401, 403) else ""
        message = f"{asked.who} has no {asked.what}, or does not show it ({status}){hint}"
        return SourceNotFound(message, fields=(), retry_after_seconds=None, **asked.metadata)
    if status == 412:
        return changed(asked)
    delay = _retry_after(headers.get("Retry-After"))
    return unavailable(asked, f"{asked.who} answered {status} for {asked.what}", retry_after_seconds=delay)


def unavailable(asked: Asked, message: str, retry_after_seconds: float | None = None) -> SourceUnavailable:
    return SourceUnavailable(message, fields=(), retry_after_seconds=retry_after_seconds, **asked.metadata)


def changed(asked: Asked) -> ChecksumMismatch:
    message = f"{asked.what} changed at {asked.who} since this was planned"
    return ChecksumMismatch(message, fields=(), retry_after_seconds=None, **asked.metadata)


@contextmanager
def source_errors(asked: Asked) -> Iterator[None]:
    """Turns whatever the HTTP library raises into SourceNotFound or SourceUnavailable."""
    import httpx2

    try:
        yield
    except ModelMoraError:
        raise
    except httpx2.HTTPError as error:
        response = getattr(error, "response", None)
        if response is not None:
            raise refusal(response.status_code, response.headers, asked) from None
        raise unavailable(asked, f"{asked.who} broke off: {type(error).__name__}") from None
    except httpx2.InvalidURL:
        raise unavailable(asked, f"{asked.who} leads to an address that is none") from None
    except OSError as error:
        raise unavailable(asked, f"{asked.who} cannot be reached: {type(error).__name__}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise unavailable(asked, f"{asked.who} gave an answer that is none: {type(error).__name__}") from None


def _pin(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _abort(response: Any) -> None:
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It has ended by itself.


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(header: str | None) -> float | None:
    """Seconds, from a number or an HTTP date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(MAX_RETRY_AFTER_SECONDS, max(0.0, seconds)) if seconds == seconds else None
