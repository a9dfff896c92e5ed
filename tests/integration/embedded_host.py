"""A host for kill tests: serves the embedded database of a folder and writes numbers into it until it is killed.

usage: embedded_host.py DATA_DIR RUN_DIR FIRST_NUMBER

Says `ready PID` when the server is up, then each number once it is committed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
from modelmora_runtime.postgres import EmbeddedPostgres
from modelmora_runtime.supervisor import RestartPolicy


async def main(data_dir: Path, run_dir: Path, number: int) -> None:
    # Ten kills in two seconds are a crash loop; the tests of the policy are elsewhere, here the wait is cut short.
    policy = RestartPolicy(first_delay_seconds=0.02, max_delay_seconds=0.2)
    async with EmbeddedPostgres(data_dir, run_dir, policy=policy) as postgres:
        url = postgres.url.replace("+asyncpg", "")
        print(f"ready {postgres.state.pid}", flush=True)
        while True:
            try:
                connection = await asyncpg.connect(url, timeout=60)
                await connection.execute("CREATE TABLE IF NOT EXISTS number (value integer PRIMARY KEY)")
                while True:
                    number += 1
                    await connection.execute("INSERT INTO number VALUES ($1)", number, timeout=60)
                    print(number, flush=True)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await asyncio.sleep(0.01)


if __name__ == "__main__":
    os.environ["MODELMORA_DATA_DIR"] = sys.argv[1]
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
