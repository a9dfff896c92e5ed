"""Starting the embedded server where something is in the way: another holder, stale files, users, modes, full disks."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 (nothing else runs in these loops)

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from leftovers import wait_for_none
from modelmora.errors import DataFolderInUse, DataFolderUnusable
from modelmora_runtime import supervisor
from modelmora_runtime.data_directory import DataDirectory
from modelmora_runtime.postgres import EmbeddedPostgres, PostgresState, recovery_sync
from modelmora_runtime.supervisor import Identity

HOST = Path(__file__).with_name("embedded_host.py")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about being root")


def embedded(data_dir: Path, **options: object) -> EmbeddedPostgres:
    return EmbeddedPostgres(data_dir, data_dir.parent / "run", **options)  # type: ignore[arg-type]


async def scalar(postgres: EmbeddedPostgres, query: str) -> object:
    connection = await asyncpg.connect(postgres.url.replace("+asyncpg", ""), timeout=60)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_first_start_says_what_it_does_and_the_second_is_fast(data_dir: Path) -> None:
    said: list[str] = []
    states: list[PostgresState] = []

    def told() -> list[str]:
        """But for what is said where a start takes long, as it may on a machine that stands still."""
        return [line for line in said if "still starting" not in line]

    async with embedded(data_dir, on_progress=said.append, on_state=states.append) as postgres:
        assert await scalar(postgres, "SELECT current_setting('listen_addresses')") == ""
        assert await scalar(postgres, "SELECT current_setting('fsync')") == "on"
        assert await scalar(postgres, "SELECT current_setting('data_checksums')") == "on"
        sync = await scalar(postgres, "SELECT current_setting('recovery_init_sync_method')")
        assert sync == recovery_sync(os.uname().release)
    assert len(told()) == 1
    assert [state.status for state in states] == ["starting", "ready", "stopped"]
    started, stopped = [], []
    for _ in range(10):
        began = time.monotonic()
        async with embedded(data_dir, on_progress=said.append):
            started.append(time.monotonic() - began)
            began = time.monotonic()
        stopped.append(time.monotonic() - began)
        if min(started) < 1.5 and min(stopped) < 0.5:
            break
    assert len(told()) == 1
    # 0.06 and 0.01 on an idle machine; beside others' load the best of ten tells.
    assert min(started) < 1.5
    assert min(stopped) < 0.5
    wait_for_none(data_dir)


async def test_only_the_owner_gets_in_and_only_with_the_password(data_dir: Path) -> None:
    async with embedded(data_dir) as postgres:
        sockets = data_dir.parent / "run" / "postgres"
        assert sockets.stat().st_mode & 0o777 == 0o700
        for name in ("postgres.password", "lock", "format"):
            assert (data_dir / name).stat().st_mode & 0o777 == 0o600
        assert data_dir.stat().st_mode & 0o777 == 0o700
        for password in (None, "wrong"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
                await asyncpg.connect(host=str(sockets), user="modelmora", database="modelmora", password=password)
        assert await postgres.ping()


async def test_the_second_holder_is_told_who_is_the_first(data_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(HOST), str(data_dir), str(data_dir.parent / "run"), "0"], stdout=subprocess.PIPE
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline().startswith(b"ready")
            with pytest.raises(DataFolderInUse, match=rf"pid {first.pid}\b.*MODELMORA_DATA_DIR") as caught:
                await embedded(data_dir).__aenter__()
            assert caught.value.metadata["pid"] == str(first.pid)
        finally:
            first.kill()
    async with embedded(data_dir) as postgres:
        assert await postgres.ping()


def test_two_parts_of_one_process_share_the_lock(data_dir: Path) -> None:
    with DataDirectory.lock(data_dir, holder="one") as one:
        with DataDirectory.lock(data_dir, holder="two") as two:
            assert one is two
        assert json.loads((data_dir / "lock").read_text())["what"] == "one"
        code = (
            "import sys, pathlib; from modelmora_runtime.data_directory import DataDirectory;"
            "DataDirectory.lock(pathlib.Path(sys.argv[1]))"
        )
        second = subprocess.run([sys.executable, "-c", code, str(data_dir)], capture_output=True, text=True)
        assert f"is in use by one, pid {os.getpid()}" in second.stderr
    assert subprocess.run([sys.executable, "-c", code, str(data_dir)]).returncode == 0


async def test_a_stale_pid_file_that_names_an_innocent_process_harms_nobody(data_dir: Path) -> None:
    async with embedded(data_dir) as postgres:
        await scalar(postgres, "CREATE TABLE thing AS SELECT 7 AS value")
        child = postgres.state.pid
        assert child is not None
        pid_file = (data_dir / "postgres" / "postmaster.pid").read_text().split("\n")
        lock_file = (data_dir.parent / "run/postgres/.s.PGSQL.5432.lock").read_text().split("\n")
    with subprocess.Popen(["sleep", "600"]) as innocent:
        try:
            for pid in (innocent.pid, os.getpid(), 1):
                for path, lines in (
                    (data_dir / "postgres" / "postmaster.pid", pid_file),
                    (data_dir.parent / "run/postgres/.s.PGSQL.5432.lock", lock_file),
                ):
                    path.write_text("\n".join([str(pid), *lines[1:]]))
                async with embedded(data_dir) as postgres:
                    assert await scalar(postgres, "SELECT value FROM thing") == 7
                    assert innocent.poll() is None
            for text in ("", "garbage\n", "\0\0\0"):
                (data_dir / "postgres" / "postmaster.pid").write_text(text)
                async with embedded(data_dir) as postgres:
                    assert await scalar(postgres, "SELECT value FROM thing") == 7
            assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_a_half_made_cluster_is_made_anew(data_dir: Path) -> None:
    script = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from modelmora_runtime.postgres import EmbeddedPostgres\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    def kill(line): loop.call_later(float(sys.argv[2]), os.kill, os.getpid(), signal.SIGKILL)\n"
        "    path = Path(sys.argv[1])\n"
        "    async with EmbeddedPostgres(path, path.parent / 'run', on_progress=kill): pass\n"
        "asyncio.run(main())\n"
    )
    for delay in ("0.02", "0.15", "0.3"):
        result = subprocess.run([sys.executable, "-c", script, str(data_dir), delay])
        assert result.returncode in (-signal.SIGKILL, 0)
    async with embedded(data_dir) as postgres:
        assert await scalar(postgres, "SELECT 1") == 1
    assert not list(data_dir.glob("postgres.new-*"))
    wait_for_none(data_dir)


async def test_folders_that_are_not_ours_or_not_of_this_format_are_refused_by_name(data_dir: Path) -> None:
    data_dir.parent.joinpath("file").touch()
    with pytest.raises(DataFolderUnusable, match=r"file is not a folder"):
        await embedded(data_dir.parent / "file").__aenter__()
    (data_dir / "postgres").mkdir(parents=True)
    with pytest.raises(DataFolderUnusable, match=r"no file `format`.*MODELMORA_DATA_DIR"):
        await embedded(data_dir).__aenter__()
    (data_dir / "postgres").rmdir()
    for text in ('{"format": 99, "postgres": 18}', '{"format": 1, "postgres": 15}', "{}", "not json"):
        (data_dir / "format").write_text(text)
        with pytest.raises(DataFolderUnusable, match="format"):
            await embedded(data_dir).__aenter__()
    (data_dir / "format").unlink()
    async with embedded(data_dir):
        pass
    (data_dir / "postgres.password").unlink()
    with pytest.raises(DataFolderUnusable, match=r"postgres\.password is gone"):
        await embedded(data_dir).__aenter__()


async def test_a_failed_start_leaves_no_process_and_lets_the_folder_go(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_DRAIN_SECONDS", 20.0)  # its last lines are what is looked at
    async with embedded(data_dir):
        pass
    control = data_dir / "postgres" / "global" / "pg_control"
    kept = control.read_bytes()
    control.write_bytes(b"broken")
    with pytest.raises(Exception, match="did not start") as caught:
        await embedded(data_dir).__aenter__()
    assert type(caught.value).__name__ == "DatabaseFailed"
    assert "pg_control" in str(caught.value)
    wait_for_none(data_dir)
    control.write_bytes(kept)
    async with embedded(data_dir) as postgres:
        assert await postgres.ping()


async def test_a_cancelled_start_leaves_no_process(data_dir: Path) -> None:
    for steps in (1, 3, 30, 300):
        start = asyncio.create_task(embedded(data_dir).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.wait([start], timeout=steps / 1000)
        if start.cancel():
            await asyncio.wait([start])
        if not start.cancelled():
            await start.result().__aexit__(None, None, None)
        wait_for_none(data_dir)
    async with embedded(data_dir) as postgres:
        assert await postgres.ping()


async def test_a_server_that_keeps_dying_is_red_and_comes_back_when_it_can(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_DRAIN_SECONDS", 20.0)  # its last lines are what is looked at
    states: asyncio.Queue[PostgresState] = asyncio.Queue()
    policy = supervisor.RestartPolicy(first_delay_seconds=0.01, max_delay_seconds=0.1)
    async with embedded(data_dir, on_state=states.put_nowait, policy=policy) as postgres:
        control = data_dir / "postgres" / "global" / "pg_control"
        kept = control.read_bytes()
        control.write_bytes(b"broken")
        assert postgres.state.pid is not None
        os.kill(postgres.state.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while (state := await states.get()).healthy:
                pass
            assert state.status == "restarting"
            assert "pg_control" in state.reason
            control.write_bytes(kept)
            while (state := await states.get()).status != "ready":
                pass
        assert state.healthy
        assert await scalar(postgres, "SELECT 1") == 1


async def test_a_long_path_gets_its_socket_elsewhere(data_dir: Path) -> None:
    deep = data_dir.parent.joinpath(*["a-rather-long-folder-name"] * 5)
    deep.mkdir(parents=True)
    async with EmbeddedPostgres(deep / "data", deep / "run") as postgres:
        assert await scalar(postgres, "SELECT 1") == 1
        folder = Path(postgres.url.partition("?host=")[2])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.is_relative_to(deep)
    assert not folder.exists()


@as_root
async def test_root_needs_no_other_user_and_no_open_folder(data_dir: Path) -> None:
    home = data_dir.parent
    assert home.stat().st_mode & 0o777 == 0o700
    async with embedded(data_dir):
        assert (data_dir / "postgres").stat().st_uid == 0
    assert home.stat().st_mode & 0o777 == 0o700


@as_root
async def test_an_ordinary_user_serves_too_and_root_takes_over_as_that_user(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    identity = Identity("user", nobody.pw_uid, nobody.pw_gid)
    data_dir.parent.chmod(0o755)
    home = data_dir.parent / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    command = [sys.executable, str(HOST), str(home / "data"), str(home / "run"), "0"]
    with subprocess.Popen(
        supervisor.child_command(command, identity=identity), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        line = host.stdout.readline()
        if not line:
            assert host.stderr is not None
            said = host.stderr.read().decode()
            if "Permission denied" in said:
                pytest.skip("this clone lies where nobody may not go")
            pytest.fail(said)
        assert line.startswith(b"ready")
        assert (home / "data" / "postgres").stat().st_uid == nobody.pw_uid
        host.kill()
        host.stdout.close()
    wait_for_none(home)
    # The folder is nobody's, and root keeps it so: it runs the server as nobody.
    async with EmbeddedPostgres(home / "data", home / "run") as postgres:
        assert postgres.state.pid is not None
        assert os.stat(f"/proc/{postgres.state.pid}").st_uid == nobody.pw_uid
        assert await scalar(postgres, "SELECT 1") == 1
    wait_for_none(home)
    async with embedded(data_dir):
        pass
    # And the other way round the owner is named.
    shutil.chown(data_dir, nobody.pw_uid)
    refused = subprocess.run(
        supervisor.child_command([sys.executable, str(HOST), str(data_dir), "/tmp/x", "0"], identity=identity),
        capture_output=True,
        text=True,
    )
    assert "DataFolderUnusable" in refused.stderr
    assert "uid 65534" in refused.stderr
    assert (data_dir / "postgres").stat().st_uid == 0


NO_NAMESPACES = """
import asyncio, ctypes, os, sys
from pathlib import Path
from modelmora_runtime.postgres import EmbeddedPostgres

# A user namespace with all users in it, in which no further one may be made: what a locked-down container looks like.
go, done = os.pipe(), os.pipe()
if (child := os.fork()) == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(done[1], b".")
    os.read(go[0], 1)
    os.setgid(0); os.setuid(0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    async def main():
        path = Path(sys.argv[1])
        async with EmbeddedPostgres(path, path.parent / "run") as postgres:
            print("user", os.stat(f"/proc/{postgres.state.pid}").st_uid, oct(path.stat().st_mode)[-3:], flush=True)
    asyncio.run(main())
    os._exit(0)
os.read(done[0], 1)
for name in ("uid_map", "gid_map"):
    Path(f"/proc/{child}/{name}").write_text("0 0 65536")
os.write(go[1], b".")
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@as_root
def test_where_namespaces_are_refused_root_takes_an_existing_user_or_names_what_is_in_the_way(data_dir: Path) -> None:
    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", NO_NAMESPACES, str(data_dir)], capture_output=True, text=True, timeout=120
        )

    refused = start()
    assert "DataFolderUnusable" in refused.stderr, refused
    assert f"cannot enter {data_dir.parent} (0o700)" in refused.stderr
    assert "MODELMORA_DATA_DIR" in refused.stderr
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(data_dir)
    data_dir.parent.chmod(0o755)
    served = start()
    if "cannot enter" in served.stderr:
        pytest.skip("this clone lies where no other user may go")
    users = {str(user.pw_uid) for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody")}
    word, user, mode = served.stdout.split() or ["", "", served.stderr]
    assert (word, mode) == ("user", "711")
    assert user in users
    assert str((data_dir / "postgres").stat().st_uid) == user
    # Once more in the folder that is there now.
    assert start().stdout.split() == [word, user, mode]


FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from modelmora.errors import StorageFull
from modelmora_runtime.postgres import EmbeddedPostgres
from modelmora_runtime.db import Database
from modelmora_runtime.supervisor import RestartPolicy
from modelmora.errors import DatabaseUnavailable
from sqlalchemy import text

async def main():
    path = Path(sys.argv[1]) / "data"
    os.system(f"mount -t tmpfs -o size=20m none {sys.argv[1]}")
    try:
        await EmbeddedPostgres(path, path.parent / "run").__aenter__()
    except StorageFull as error:
        print("refused", error.metadata["folder"], [*path.glob("postgres"), *path.glob("postgres.new*")])
    os.system(f"mount -t tmpfs -o remount,size=300m none {sys.argv[1]}")
    policy = RestartPolicy(first_delay_seconds=0.05, max_delay_seconds=0.2)
    states = []
    async with EmbeddedPostgres(path, path.parent / "run", policy=policy, on_state=states.append) as postgres:
        database = Database(postgres.url, "public")
        async with database.begin() as connection:
            await connection.execute(text("CREATE TABLE thing (value text)"))
        ballast = path.parent / "ballast"
        free = os.statvfs(path)
        with open(ballast, "wb") as file:
            file.write(bytes(free.f_bavail * free.f_frsize - 4_000_000))
        rows, seen = 0, set()
        async with asyncio.timeout(100):
            while "StorageFull" not in seen and "DatabaseUnavailable" not in seen:
                try:
                    async with database.begin() as connection:
                        await connection.execute(
                            text("INSERT INTO thing SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000) i")
                        )
                    rows += 1000
                except (StorageFull, DatabaseUnavailable) as error:
                    seen.add(type(error).__name__)
            ballast.unlink()
            while True:
                try:
                    async with database.begin() as connection:
                        await connection.execute(text("INSERT INTO thing VALUES ('last')"))
                        count = await connection.scalar(text("SELECT count(*) FROM thing"))
                    break
                except (StorageFull, DatabaseUnavailable):
                    await asyncio.sleep(0.05)
        print("kept", count == rows + 1, sorted(seen))
        await database.close()

asyncio.run(main())
"""


def test_a_full_disk_is_named_and_when_there_is_room_again_all_goes_on(data_dir: Path) -> None:
    data_dir.mkdir()
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, str(data_dir)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    if "unshare:" in result.stderr:
        pytest.skip(f"no namespaces here: {result.stderr.strip()}")
    lines = result.stdout.splitlines()
    assert lines[0] == f"refused {data_dir / 'data'} []", result
    assert lines[1].startswith("kept True"), result


def test_an_unwritable_folder_is_named_with_its_mode(data_dir: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from modelmora_runtime.postgres import EmbeddedPostgres;"
        "asyncio.run(EmbeddedPostgres(Path(sys.argv[1]), Path(sys.argv[1]) / 'run').__aenter__())"
    )
    data_dir.mkdir()
    # Root writes everywhere but on a read-only mount.
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    result = subprocess.run(
        ["unshare", "-Urm", "/bin/sh", "-c", script, "sh", str(data_dir), sys.executable, code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "unshare:" in result.stderr:
        pytest.skip(f"no namespaces here: {result.stderr.strip()}")
    assert "DataFolderUnusable" in result.stderr
    assert str(data_dir) in result.stderr
    assert "MODELMORA_DATA_DIR" in result.stderr
