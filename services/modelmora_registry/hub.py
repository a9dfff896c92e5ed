"""The Hugging Face Hub as a source: which files a revision has and their bytes, through `huggingface_hub`'s session.

Everything here blocks and runs in the registry's file threads. The library is imported with the first use, so that a
platform that never asks the Hub does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelmora.errors import FailedPrecondition, InvalidArgument, SourceUnavailable

from modelmora_registry.web import Asked, Download, Web, read_secret, source_errors

METADATA_TIMEOUT_SECONDS = 10.0
HINT = "a gated or private repository needs access on the Hub and registry.hub_token_file"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the Hub tells of the repository: `license`, `pipeline_tag`, `library_name`."""


class Hub:
    """One Hub endpoint. `endpoint` None is the library's default, which HF_ENDPOINT sets.

    The token is read for each use and goes nowhere but into the request; without a file no token is sent, not even one
    that lies in the home of whoever started the server.
    """

    def __init__(self, web: Web | None = None, *, endpoint: str | None = None, token_file: Path | None = None) -> None:
        self._web = web or Web()
        self._endpoint = endpoint.rstrip("/") if endpoint else None
        self._token_file = token_file

    def page(self, repo_id: str) -> str:
        """Where people see a repository."""
        from huggingface_hub import constants

        return f"{self._endpoint or constants.ENDPOINT}/{repo_id}"

    def snapshot(self, repo_id: str, revision: str) -> Snapshot:
        """Resolves a branch, tag or commit and lists its files.

        Raises SourceNotFound, or SourceUnavailable with the delay that the Hub asks for.
        """
        asked = _asked(repo_id, revision)
        with self._errors(asked):
            info = self._api().model_info(
                repo_id, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_SECONDS
            )
            files = tuple(_remote_file(sibling) for sibling in info.siblings or ())
            commit, card = info.sha or "", info.card_data
            metadata = {
                "license": str(card.get("license") or "") if card else "",
                "pipeline_tag": str(info.pipeline_tag or ""),
                "library_name": str(info.library_name or ""),
            }
        if not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(f"the Hub names no commit for {repo_id} at {revision}", repo_id=repo_id)
        return Snapshot(commit=commit, files=files, metadata={name: text for name, text in metadata.items() if text})

    @contextmanager
    def download(self, repo_id: str, commit: str, path: str, *, offset: int = 0) -> Iterator[Download]:
        """Opens a file at `offset` or, where the server does not know ranges, at 0: read `Download.offset`."""
        asked = _asked(repo_id, commit, path)
        with self._errors(asked):
            from huggingface_hub import hf_hub_url
            from huggingface_hub.utils import build_hf_headers

            url = hf_hub_url(repo_id, path, revision=commit, endpoint=self._endpoint)
            headers = build_hf_headers(token=self._token())
        with self._web.open(url, asked, headers=headers, offset=offset) as download:
            yield download

    def check_writable(self) -> None:
        """Raises FailedPrecondition without a token."""
        if self._token_file is None:
            raise FailedPrecondition("writing to the Hub needs registry.hub_token_file")

    def upload(
        self, repo_id: str, folder: Path, paths: Sequence[str], *, deleted: Sequence[str], parent: str, message: str
    ) -> str:
        """Puts files into a repository and takes others away in one commit, which is there whole or not at all; makes a
        private repository if there is none. `parent`: the commit that this is for, empty for any; when there is another
        by now it is ChecksumMismatch. Returns the commit. FailedPrecondition without a token, SourceNotFound,
        SourceUnavailable.
        """
        self.check_writable()
        asked = _asked(repo_id, "main")
        with ExitStack() as stack, self._errors(asked):
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            api = self._api()
            api.create_repo(repo_id, private=True, exist_ok=True)
            # Opened files go over plain HTTP, where the settings of `web` hold; paths would go by Xet's own client.
            operations: list[Any] = [
                CommitOperationAdd(path, stack.enter_context(open(folder / path, "rb"))) for path in paths
            ]
            operations += [CommitOperationDelete(path, is_folder=False) for path in deleted]
            made = api.create_commit(
                repo_id, operations, commit_message=message, num_threads=2, parent_commit=parent or None
            )
            return str(made.oid)

    def _api(self) -> Any:
        from huggingface_hub import HfApi, constants, set_client_factory
        from huggingface_hub.utils._http import hf_request_event_hook

        self._web.check_online()
        if constants.is_offline_mode():
            raise FailedPrecondition("the environment sets the Hub offline (HF_HUB_OFFLINE)")
        if _configured[0] is not self._web:  # The library has one session for the process.
            hooks = {"request": [hf_request_event_hook]}
            set_client_factory(lambda: self._web.new_client(timeout=None, event_hooks=hooks))
            _configured[0] = self._web
        return HfApi(endpoint=self._endpoint, token=self._token())

    @contextmanager
    def _errors(self, asked: Asked) -> Iterator[None]:
        self._web.check_online()
        from huggingface_hub.errors import HFValidationError

        with source_errors(asked):
            try:
                yield
            except HFValidationError as error:
                raise InvalidArgument.at("source.hub", str(error)) from None

    def _token(self) -> str | bool:
        if self._token_file is None:
            return False
        return read_secret(self._token_file, "registry.hub_token_file") or False


_configured: list[Web | None] = [None]
"""Whose settings the session of huggingface_hub has."""


def _asked(repo_id: str, revision: str, file: str = "") -> Asked:
    what = f"file {file} of {repo_id} at {revision}" if file else f"{repo_id} at {revision}"
    metadata = {"repo_id": repo_id, "revision": revision} | ({"file": file} if file else {})
    return Asked("the Hub", what, HINT, metadata)


def _remote_file(sibling: Any) -> RemoteFile:
    """Raises ValueError or TypeError for what is no entry of a listing: a digest becomes the name of a file here."""
    path, large = sibling.rfilename, sibling.lfs
    size_bytes = int(sibling.size if large is None else large.size)
    if not isinstance(path, str) or size_bytes < 0:
        raise ValueError("no file")
    if large is None:
        return RemoteFile(path, size_bytes, None, str(sibling.blob_id))
    if not _SHA256.fullmatch(large.sha256):
        raise ValueError("no digest")
    return RemoteFile(path, size_bytes, f"sha256:{large.sha256}", None)
