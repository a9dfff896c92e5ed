"""The worker's side of the wire on real sockets, in a thread: peers that do not read, and many threads that write."""

from __future__ import annotations

import os
import queue
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock
from modelmora_runtime.framing import CLOSED, CONTROL, MESSAGE, Connection, FrameServer, Limits, Wire


class Echo:
    """Admits everyone and sends messages back; tells what happens through a queue."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()

    def on_accepted(self, connection: Connection) -> None:
        connection.admit()
        self.events.put(("accepted", connection))

    def on_message(self, connection: Connection, request_id: int, message: bytes) -> None:
        connection.send(request_id, message, granted_bytes=len(message))

    def on_control(self, connection: Connection, request_id: int, message: bytes) -> None:
        connection.send_control(request_id, message)

    def on_closed(self, connection: Connection, reason: str) -> None:
        self.events.put(("closed", reason))

    def next(self, name: str) -> Any:
        while True:
            event, value = self.events.get(timeout=20)
            if event == name:
                return value


class Rig:
    def __init__(self, folder: Path, listener: socket.socket | None = None, **settings: Any) -> None:
        self.path = str(folder / "s")
        listener = listener or socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.echo = Echo()
        self.server = FrameServer(listener, self.echo, **settings)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def connect(self) -> Peer:
        return Peer(self.path)

    def close(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Peer:
    """A blocking caller."""

    def __init__(self, path: str, *, window: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.wire = Wire()
        if window:
            self.wire.open_window()

    def write(self) -> None:
        while output := self.wire.take():
            self.socket.sendall(output)

    def events(self) -> list[tuple[int, int, bytes]]:
        """What arrives next; empty at the end."""
        while data := self.socket.recv(1 << 20):
            if events := self.wire.receive(data):
                return events
            self.write()
        return []


@pytest.fixture
def rig(data_dir: Path) -> Iterator[Rig]:
    rig = Rig(data_dir.parent)
    yield rig
    rig.close()


@pytest.fixture
def impatient(data_dir: Path) -> Iterator[Rig]:
    rig = Rig(data_dir.parent, write_timeout_seconds=0.2)
    yield rig
    rig.close()


def test_messages_come_back_whole(rig):
    peer = rig.connect()
    message = bytes(range(256)) * 10_000
    for number in range(1, 6):
        peer.wire.send(number, message)
    got: list[tuple[int, int, bytes]] = []
    while len(got) < 5:
        peer.write()
        got += peer.events()
    assert sorted(got) == [(MESSAGE, number, message) for number in range(1, 6)]
    peer.socket.close()
    assert rig.echo.next("closed") == "peer-gone"


def test_a_peer_that_does_not_read_is_closed_by_name(impatient):
    peer = impatient.connect()
    connection = impatient.echo.next("accepted")
    connection._wire._credit_messages = connection._wire._credit_bytes = 1 << 39
    connection.send(1, bytes(10_000_000))
    assert impatient.echo.next("closed") == "peer-does-not-read"
    peer.socket.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_peer_that_reads_slowly_is_not_closed(data_dir):
    clock = FakeClock()
    rig = Rig(data_dir.parent, write_timeout_seconds=10, clock=lambda: clock.now)
    peer = rig.connect()
    connection = rig.echo.next("accepted")
    peer.wire.send(1, bytes(3_000_000))
    while not connection.unsent_bytes:
        assert peer.wire.receive(peer.socket.recv(1)) == []
        peer.write()
    for _ in range(4):  # 6 s each: longer in all than nobody may read for
        clock.advance(6)
        looked = threading.Event()
        rig.server.call_soon(lambda looked=looked: rig.server.call_later(0, looked.set))
        assert looked.wait(20), "the timers of these seconds have run"
        left = connection.unsent_bytes
        assert peer.wire.receive(peer.socket.recv(500_000)) == []
        until(lambda left=left: connection.unsent_bytes < left or connection.closed)
        assert not connection.closed
    assert peer.events() == [(MESSAGE, 1, bytes(3_000_000))]
    peer.wire.send_control(2, b"still here")
    peer.write()
    assert (CONTROL, 2, b"still here") in peer.events()
    rig.close()


def test_the_reason_of_a_close_reaches_a_peer_that_reads(rig):
    peer = rig.connect()
    rig.echo.next("accepted").close("lease-withdrawn")
    events = []
    while more := peer.events():
        events += more
    assert events == [(CLOSED, 0, b"lease-withdrawn")]


def test_threads_that_write_at_once_do_not_mix_their_messages(rig):
    peer = rig.connect()
    peer.write()
    connection = rig.echo.next("accepted")

    def write(number: int) -> None:
        for count in range(50):
            connection.send(number, struct.pack("<II", number, count) * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    counts = dict.fromkeys(range(1, 5), 0)
    while sum(counts.values()) < 200:
        for kind, number, message in peer.events():
            assert kind == MESSAGE
            assert message == struct.pack("<II", number, counts[number]) * 5000
            counts[number] += 1
            peer.wire.grant(1, len(message))
        peer.write()
    for thread in threads:
        thread.join(20)


def test_what_was_sent_before_a_stop_still_arrives(data_dir):
    rig = Rig(data_dir.parent)
    peer = rig.connect()
    connection = rig.echo.next("accepted")
    peer.write()
    peer.wire.send(1, b"x")
    peer.write()
    assert peer.events() == [(MESSAGE, 1, b"x")]
    connection.send(2, bytes(5_000_000))
    rig.server.stop(flush_seconds=20)
    first, *later = peer.events()
    assert first == (MESSAGE, 2, bytes(5_000_000))
    assert later in ([], [(CLOSED, 0, b"shutting-down")])  # which may come with it
    rig.thread.join(20)
    assert not rig.thread.is_alive()


def test_connections_are_bounded(data_dir):
    rig = Rig(data_dir.parent)
    rig.server.max_connections = 2
    peers = [rig.connect() for _ in range(2)]
    for _ in peers:
        rig.echo.next("accepted")
    assert rig.connect().socket.recv(1) == b""
    rig.close()


def test_a_flood_of_pings_from_a_peer_that_does_not_read_ends_its_connection(data_dir):
    rig = Rig(data_dir.parent, limits=Limits(max_control_queue=50), write_timeout_seconds=60)
    peer = rig.connect()
    rig.echo.next("accepted")
    ping = struct.pack("<IHBBQ", 64, 0x4D4D, 7, 0, 0) + b"x" * 64

    def flood() -> None:
        while True:
            peer.socket.sendall(ping * 1000)

    with pytest.raises(OSError):
        flood()
    assert rig.echo.next("closed").startswith("peer-does-not-read")
    rig.close()


class CountingListener(socket.socket):
    accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepts += 1
        return super().accept()


def test_without_a_descriptor_left_it_waits_for_one_and_goes_on_serving(data_dir):
    listener = CountingListener(socket.AF_UNIX)
    rig = Rig(data_dir.parent, listener)
    peer = rig.connect()
    rig.echo.next("accepted")
    late = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = listener.accepts
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (late.fileno() + 1, hard))
        fillers = []
        try:
            while True:
                fillers.append(os.dup(late.fileno()))
        except OSError:
            pass
        late.connect(rig.path)
        for number in range(50):
            peer.wire.send(number, b"x")
            peer.write()
            assert peer.events() == [(MESSAGE, number, b"x")]
        assert listener.accepts - before < 25
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    rig.echo.next("accepted")
    rig.close()
