"""Runs pytest again and again in forks of one process that has imported the libraries, which saves a second each time.

Reads one JSON list of pytest's arguments a line from standard input; answers with the exit status, or null for one that
ran too long. The first argument is the file for the output, the second the time limit in seconds. Nothing of ours is
imported before the fork, so each run imports the tree as it is then.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

PRELOADED = (
    "pytest", "pytest_asyncio", "pytest_timeout", "hypothesis", "asyncio", "sqlite3", "xml.etree.ElementTree",
    "google.protobuf.descriptor_pb2", "google.protobuf.struct_pb2", "google.protobuf.timestamp_pb2",
    "google.rpc.error_details_pb2", "grpc", "grpc.aio", "grpc_health.v1.health_pb2", "pydantic", "yaml", "click",
    "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg", "asyncpg", "alembic.config", "psutil", "uvloop",
    "prometheus_client", "opentelemetry.trace", "opentelemetry.sdk.trace",
)  # fmt: skip


def main() -> None:
    for name in PRELOADED:
        try:
            __import__(name)
        except ImportError:
            continue
    foreign = [name for name in sys.modules if name.split(".")[0].startswith("modelmora")]
    assert not foreign, foreign
    for line in sys.stdin:
        output, seconds, *arguments = json.loads(line)
        print(json.dumps(_run(output, seconds, arguments)), flush=True)


def _run(output: str, seconds: float, arguments: list[str]) -> int | None:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, log, log)):
            os.dup2(file, number)
        import pytest

        sys.argv = ["pytest", *arguments]
        code = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    pidfd = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], seconds)
        # What a run leaves behind goes with it.
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) if ended else None
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    main()
