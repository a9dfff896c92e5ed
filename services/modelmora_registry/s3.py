"""S3-compatible stores as a source. botocore signs and lists; the bytes come through `web` like all others, so that
they too go on at an offset, are ended at once and notice a store that hardly drips.

botocore comes with the extra `s3` and is imported with the first use. Everything here blocks.
"""

from __future__ import annotations

import configparser
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmora.errors import FailedPrecondition

from modelmora_registry.web import Asked, Download, Web, refusal, unavailable

DEFAULT_REGION = "us-east-1"
SIGNED_SECONDS = 3600
"""How long the signature of one download is good for; it is checked when the download begins."""
CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 30.0
_NO_VERSION = "null"
"""VersionId of what was written while a bucket kept no versions: another content can get it too."""
HINT = "set registry.s3_credentials_file, or registry.s3_ambient_credentials"


@dataclass(frozen=True)
class Told:
    """What a store says of an object. `version` is empty where the bucket keeps none of it."""

    size_bytes: int
    etag: str
    version: str


class S3:
    """`endpoint` None: Amazon's. Without `credentials_file` (in the shape of ~/.aws/credentials) requests are not
    signed, unless `ambient` lets botocore look where it always looks: environment, home, machine role."""

    def __init__(
        self,
        web: Web,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        credentials_file: Path | None = None,
        profile: str = "default",
        ambient: bool = False,
    ) -> None:
        self._web = web
        self._endpoint = endpoint
        self._region = region
        self._credentials_file = credentials_file
        self._profile = profile
        self._ambient = ambient
        self._lock = threading.Lock()
        self._made: Any = None

    def list(self, bucket: str, prefix: str, *, limit: int) -> list[str]:
        """Paths, relative to `prefix`, of up to `limit` + 1 objects below it. SourceNotFound, SourceUnavailable."""
        self._web.check_online()
        asked = _asked(bucket, prefix)
        found: list[str] = []
        with self._errors(asked):
            below = f"{prefix}/" if prefix else ""
            for page in self._client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below):
                for item in page.get("Contents", ()):
                    path, size_bytes = str(item["Key"])[len(below) :], int(item["Size"])
                    if size_bytes == 0 and (not path or path.endswith("/")):
                        continue  # What consoles make for a folder.
                    found.append(path)
                    if len(found) > limit:
                        return found
        return found

    def tell(self, bucket: str, key: str, *, version: str = "") -> Told:
        """One object as it is, or as it was in this version. SourceNotFound, SourceUnavailable."""
        self._web.check_online()
        with self._errors(_asked(bucket, key)):
            answer = self._client().head_object(**_named(bucket, key, version))
        found = str(answer.get("VersionId") or "")
        return Told(int(answer["ContentLength"]), str(answer["ETag"]), "" if found == _NO_VERSION else found)

    @contextmanager
    def open(self, bucket: str, key: str, *, offset: int = 0, etag: str = "", version: str = "") -> Iterator[Download]:
        """Opens an object as it was in this version, or when its `etag` was seen; else ChecksumMismatch."""
        asked = _asked(bucket, key)
        self._web.check_online()
        with self._errors(asked):
            url = self._client().generate_presigned_url(
                "get_object", Params=_named(bucket, key, version), ExpiresIn=SIGNED_SECONDS
            )
        headers = {"If-Match": etag} if etag else {}
        with self._web.open(url, asked, headers=headers, offset=offset, pin=etag) as download:
            yield download

    def _client(self) -> Any:
        """Made anew when the credentials have changed on disk."""
        try:
            seen = self._credentials_file.stat().st_mtime_ns if self._credentials_file else None
        except OSError:
            seen = -1
        with self._lock:
            if self._made is None or self._made[0] != seen:
                self._made = (seen, self._make())
            self._web.check_host(self._made[1].meta.endpoint_url)
            return self._made[1]

    def _make(self) -> Any:
        try:
            import botocore.session
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError:
            raise FailedPrecondition("S3 sources need botocore; install the extra modelmora[s3]") from None
        session = botocore.session.Session()
        if not self._ambient:
            # Neither the profile nor the settings of whoever started the server.
            session.set_config_variable("config_file", os.devnull)
            session.set_config_variable("credentials_file", os.devnull)
            session.instance_variables().pop("profile", None)
            session.get_component("config_store").set_config_provider("profile", _Nothing())
        signed = _credentials(self._credentials_file, self._profile) if self._credentials_file else {}
        config = Config(
            signature_version="s3v4" if signed or self._ambient else UNSIGNED,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"total_max_attempts": 2, "mode": "standard"},
            proxies={"http": self._web.proxy, "https": self._web.proxy} if self._web.proxy else None,
            s3={"addressing_style": "path"} if self._endpoint else {},
        )
        return session.create_client(
            "s3",
            endpoint_url=self._endpoint,
            region_name=self._region or DEFAULT_REGION,
            verify=str(self._web.ca_file) if self._web.ca_file else None,
            config=config,
            **signed,
        )

    @contextmanager
    def _errors(self, asked: Asked) -> Iterator[None]:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise FailedPrecondition("S3 sources need botocore; install the extra modelmora[s3]") from None
        try:
            yield
        except ClientError as error:
            told = error.response.get("ResponseMetadata", {})
            headers = {name.title(): text for name, text in told.get("HTTPHeaders", {}).items()}
            raise refusal(int(told.get("HTTPStatusCode", 500)), headers, asked) from None
        except BotoCoreError as error:
            # Its text can hold the URL of a proxy, with the password.
            raise unavailable(asked, f"{asked.who} cannot be reached: {type(error).__name__}") from None


class _Nothing:
    """For botocore's settings: says nothing, whatever is asked."""

    def provide(self) -> None:
        return None


def _credentials(file: Path, profile: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        section = parser[profile]
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        found = {name: section[name] for name in names if name in section}
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        # The text of a parser's error quotes the line, and that is where the secret is.
        raise FailedPrecondition(
            f"registry.s3_credentials_file has no readable profile {profile}: {type(error).__name__}"
        ) from None
    if not {"aws_access_key_id", "aws_secret_access_key"} <= found.keys():
        raise FailedPrecondition(f"registry.s3_credentials_file has no key in the profile {profile}")
    return found


def _named(bucket: str, key: str, version: str) -> dict[str, str]:
    return {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})


def _asked(bucket: str, key: str) -> Asked:
    what = f"object {bucket}/{key}" if key else f"bucket {bucket}"
    return Asked(f"the store of {bucket}", what, HINT, {"bucket": bucket, "file": key})
