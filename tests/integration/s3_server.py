"""A real S3-compatible server as a process of its own on loopback: moto's server mode.

It tells signed requests from unsigned ones, but takes any key.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import botocore.session

SERVE = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the tests, however they end
from moto.server import main
main(["-H", "127.0.0.1", "-p", "0"])
"""


@dataclass(frozen=True)
class S3Server:
    url: str

    @cached_property
    def client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106
        )

    def bucket(self, name: str, files: Mapping[str, bytes], *, public: bool = True) -> str:
        """A bucket with these objects, readable by everybody or with the keys `test`, `test` only."""
        client = self.client
        client.create_bucket(Bucket=name)
        for key, content in files.items():
            client.put_object(Bucket=name, Key=key, Body=content, ACL="public-read" if public else "private")
        return name


@contextmanager
def s3_server() -> Iterator[S3Server]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError(f"moto's server ended: {process.wait(10)}")
        yield S3Server(found[0])
    finally:
        process.kill()
        process.wait(30)
