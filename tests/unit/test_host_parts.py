"""Pieces of the host that need no loop: addresses, ports, folders, byte budget."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from modelmora_runtime import listen
from modelmora_runtime.calls import ByteBudget, BytesInFlight, Call, Method
from modelmora_runtime.host import StartFailed, run_folder
from modelmora_runtime.process import descendants


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_only_loopback_is_loopback(host: str, loopback: bool) -> None:
    assert listen.is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "target"),
    [("0.0.0.0", "127.0.0.1:7"), ("::", "[::1]:7"), ("10.0.0.1", "10.0.0.1:7"), ("localhost", "localhost:7")],  # noqa: S104
)
def test_clients_of_this_machine_get_an_address_that_they_can_call(host: str, target: str) -> None:
    assert listen.reachable(host, 7) == target


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_holder_of_a_port_is_named(family: socket.AddressFamily) -> None:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as holder:
        holder.bind((address, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(listen.PortInUse) as raised:
            listen.check_free(address, port, "platform.port")
        assert f"(pid {os.getpid()})" in raised.value.message
        assert "platform.port" in raised.value.message
        assert raised.value.metadata["port"] == str(port)
    listen.check_free(address, port, "platform.port")
    assert listen.holder(port) is None


def test_a_run_folder_is_short_and_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = run_folder(long)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run_folder(long) == folder, "the same at each start"
    assert run_folder(long / "y") != folder
    folder.chmod(0o755)
    with pytest.raises(StartFailed):
        run_folder(long)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(StartFailed):
        run_folder(long)


def call() -> Any:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    return Call(Method("/modelmora.test/Answer", frozenset(), handler), None, None)  # type: ignore[arg-type]


def test_the_byte_budget_refuses_what_does_not_fit_and_takes_it_later() -> None:
    budget = ByteBudget(100)
    first, second = call(), call()
    budget.take(first, 60)
    with pytest.raises(BytesInFlight) as raised:
        budget.take(second, 60)
    assert raised.value.retry_after_seconds
    budget.take(second, 40)
    budget.add(second, 500)  # an answer goes out
    assert budget.used_bytes == 600
    budget.release(first)
    budget.release(first)
    assert budget.used_bytes == 540
    budget.release(second)
    assert budget.used_bytes == 0
    budget.take(first, 1000)  # alone it may


def test_descendants_are_children_and_their_children() -> None:
    script = (
        "import subprocess,sys; p=subprocess.Popen([sys.executable,'-c','input()']); print(p.pid,flush=True);input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(descendants(os.getpid()))
        assert set(descendants(child.pid)) == {grandchild}
        child.kill()
        os.kill(grandchild, 9)


def test_only_old_sockets_on_which_nobody_listens_are_removed(tmp_path: Path) -> None:
    alive, sockets = tmp_path / "alive.sock", []
    for path in (alive, tmp_path / "dead.sock", tmp_path / "young.sock"):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(str(path))
        if path == alive:
            sockets[-1].listen()
        if path.name != "young.sock":
            os.utime(path, (0, 0))
    (tmp_path / "file.sock").write_text("no socket")
    os.utime(tmp_path / "file.sock", (0, 0))
    (tmp_path / "endpoint.json").write_text("{}")
    sockets[1].close()
    listen.drop_dead_sockets(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["alive.sock", "endpoint.json", "young.sock"]
    for each in sockets:
        each.close()
