"""The Hugging Face Hub as a source: which files a revision has and their bytes, through `huggingface_hub`'s session.

Everything here blocks and runs in the registry's file threads. The library is imported with the first use, so that a
platform that never asks the Hub does not pay for it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmora.errors import FailedPrecondition, InvalidArgument, ModelMoraError, SourceNotFound, SourceUnavailable

METADATA_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 30.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub describes it. Exactly one digest is known: of LFS files the sha256, of others git's blob id."""

    path: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class Snapshot:
    commit: str
    files: tuple[RemoteFile, ...]


class Download:
    """The bytes of one file from `offset` on. `abort` may be called from another thread and ends a blocked read."""

    def __init__(self, response: Any, offset: int) -> None:
        self.offset = offset
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """As they come from the network: gathered into larger ones, what came before a break would be lost."""
        with _as_source_errors():
            yield from self._response.iter_raw()

    def abort(self) -> None:
        stream = self._response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It has ended by itself.


class Hub:
    """One Hub endpoint. `endpoint` None is the library's default, which HF_ENDPOINT sets.

    The token is read for each use and goes nowhere but into the request; without a file no token is sent, not even one
    that lies in the home of whoever started the server.
    """

    def __init__(self, *, endpoint: str | None = None, token_file: Path | None = None, offline: bool = False) -> None:
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token_file = token_file
        self._offline = offline

    def snapshot(self, repo_id: str, revision: str) -> Snapshot:
        """Resolves a branch, tag or commit and lists its files.

        Raises SourceNotFound, or SourceUnavailable with the delay that the Hub asks for.
        """
        self._check_online()
        with _as_source_errors(repo_id=repo_id, revision=revision):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token())
            info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_SECONDS)
            files = tuple(_remote_file(sibling) for sibling in info.siblings or ())
            commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(f"the Hub names no commit for {repo_id} at {revision}", repo_id=repo_id)
        return Snapshot(commit=commit, files=files)

    @contextmanager
    def download(self, repo_id: str, commit: str, path: str, *, offset: int = 0) -> Iterator[Download]:
        """Opens a file at `offset` or, where the server does not know ranges, at 0: read `Download.offset`."""
        self._check_online()
        with ExitStack() as stack:
            with _as_source_errors(repo_id=repo_id, revision=commit, file=path):
                from huggingface_hub import get_session, hf_hub_url
                from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

                url = hf_hub_url(repo_id, path, revision=commit, endpoint=self._endpoint)
                # Sizes, ranges and digests are those of the bytes as they are, so no compression on the way.
                headers = {**build_hf_headers(token=self._token()), "Accept-Encoding": "identity"}
                if offset:
                    headers["Range"] = f"bytes={offset}-"
                response = stack.enter_context(
                    get_session().stream(
                        "GET", url, headers=headers, timeout=READ_TIMEOUT_SECONDS, follow_redirects=True
                    )
                )
                if response.status_code >= 400:
                    response.read()
                    hf_raise_for_status(response)
            # Outside of the wrapper: what goes wrong where the bytes are written is no fault of the source.
            yield Download(response, offset if response.status_code == 206 else 0)

    def _check_online(self) -> None:
        if self._offline:
            raise FailedPrecondition("the registry is set offline (registry.offline); no Hub is asked")

    def _token(self) -> str | bool:
        if self._token_file is None:
            return False
        try:
            return self._token_file.read_text().strip() or False
        except OSError as error:
            raise FailedPrecondition(f"registry.hub_token_file cannot be read: {error.strerror}") from None


def _remote_file(sibling: Any) -> RemoteFile:
    if sibling.lfs is not None:
        return RemoteFile(sibling.rfilename, int(sibling.lfs.size), f"sha256:{sibling.lfs.sha256}", None)
    return RemoteFile(sibling.rfilename, int(sibling.size), None, str(sibling.blob_id))


@contextmanager
def _as_source_errors(**what: str) -> Iterator[None]:
    """Turns whatever the library raises into SourceNotFound, SourceUnavailable or InvalidArgument."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The library's HTTP client has changed its name between releases; its base error is found through a subclass.
    http_error = next(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
    try:
        yield
    except ModelMoraError:
        raise
    except HFValidationError as error:
        raise InvalidArgument.at("source.hub", str(error)) from None
    except http_error as error:
        raise _source_error(error, what) from error
    except OSError as error:  # Includes the library's offline mode.
        raise _unavailable(f"the Hub cannot be reached: {type(error).__name__}", what) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unavailable(f"the answer is not that of a Hub: {type(error).__name__}", what) from error


def _source_error(error: Any, what: dict[str, str]) -> ModelMoraError:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    thing = " at ".join(str(part) for part in (what.get("repo_id"), what.get("revision")) if part) or "the source"
    if status in (401, 403, 404):
        hint = "; a gated or private repository needs registry.hub_token_file" if status != 404 else ""
        file = f"file {what['file']} of " if "file" in what else ""
        message = f"the Hub has no {file}{thing}, or does not show it ({status}){hint}"
        return SourceNotFound(message, fields=(), retry_after_seconds=None, **what)
    if status is not None:
        delay = _retry_after(response.headers.get("Retry-After"))
        return _unavailable(f"the Hub answered {status} for {thing}", what, retry_after_seconds=delay)
    return _unavailable(f"the Hub broke off: {type(error).__name__}", what)


def _unavailable(message: str, what: dict[str, str], retry_after_seconds: float | None = None) -> SourceUnavailable:
    return SourceUnavailable(message, fields=(), retry_after_seconds=retry_after_seconds, **what)


def _retry_after(header: str | None) -> float | None:
    try:
        return min(3600.0, max(0.0, float(header))) if header else None
    except ValueError:
        return None  # An HTTP date: the default delay will do.
