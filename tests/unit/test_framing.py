"""The worker's wire without sockets: what goes in at one end comes out at the other, whatever the cuts."""

from __future__ import annotations

import re
import struct
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora_runtime import framing
from modelmora_runtime.framing import CLOSED, CONTROL, MAX_FRAME_BYTES, MESSAGE, PONG, FramingError, Limits, Wire

SMALL = Limits(max_message_bytes=3 * MAX_FRAME_BYTES, window_messages=3, window_bytes=MAX_FRAME_BYTES)


def pair(limits: Limits | None = None) -> tuple[Wire, Wire]:
    """Two ends that have opened their windows to each other."""
    one, other = Wire(limits), Wire(limits)
    one.open_window()
    other.open_window()
    assert other.receive(one.take()) == []
    assert one.receive(other.take()) == []
    return one, other


def carry(sender: Wire, receiver: Wire, most: int = 1 << 30) -> list[framing.Event]:
    """Everything the sender can send now."""
    events = []
    while output := sender.take(most):
        events += receiver.receive(output)
    return events


def frames(stream: bytes) -> list[tuple[int, int, int]]:
    """(kind, request id, payload length) of each frame."""
    found, offset = [], 0
    while offset < len(stream):
        length, magic, kind, zero, request_id = struct.unpack_from("<IHBBQ", stream, offset)
        assert (magic, zero) == (0x4D4D, 0)
        found.append((kind, request_id, length))
        offset += 16 + length
    assert offset == len(stream)
    return found


messages = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.one_of(
            st.binary(max_size=40),
            st.integers(0, 3 * MAX_FRAME_BYTES).map(lambda n: bytes(range(256)) * (n // 256) + b"." * (n % 256)),
        ),
    ),
    max_size=12,
)


@given(messages, st.lists(st.integers(1, 100_000), min_size=1, max_size=5), st.sampled_from([None, SMALL]))
@settings(max_examples=60, deadline=None)
def test_every_message_arrives_whole_and_in_order_of_its_request_id(sent, cuts, limits):
    one, other = pair(limits)
    for request_id, message in sent:
        one.send(request_id, message)
    got: dict[int, list[bytes]] = defaultdict(list)
    turn = 0
    while output := one.take():
        while output:
            cut = cuts[turn % len(cuts)]
            turn += 1
            events = other.receive(output[:cut])
            output = output[cut:]
            for kind, request_id, message in events:
                assert kind == MESSAGE
                got[request_id].append(message)
                other.grant(1, len(message))
        assert one.receive(other.take()) == []
    want: dict[int, list[bytes]] = defaultdict(list)
    for request_id, message in sent:
        want[request_id].append(message)
    assert got == want
    assert one.queued_bytes == 0


@given(messages)
@settings(max_examples=40, deadline=None)
def test_no_frame_is_longer_than_the_limit(sent):
    one, _ = pair()
    for request_id, message in sent:
        one.send(request_id, message)
    stream = b"".join(iter(lambda: one.take(), b""))
    assert all(length <= MAX_FRAME_BYTES for _, _, length in frames(stream))


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_by_name_or_awaited_but_never_crashes(data, after_header):
    _, wire = pair()
    if after_header:
        data = struct.pack("<IHBBQ", len(data) % 50, 0x4D4D, data[0] % 12 if data else 3, 0, 1) + data
    reason = "awaited"
    try:
        wire.receive(data)
    except FramingError as error:
        reason = error.reason
    assert re.fullmatch("[a-z-]+", reason)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.binary(max_size=24)), max_size=30))
@settings(max_examples=300, deadline=None)
def test_frames_in_any_order_are_refused_by_name_or_obeyed(sequence):
    _, wire = pair(SMALL)
    reason = "obeyed"
    try:
        for kind, request_id, payload in sequence:
            wire.receive(struct.pack("<IHBBQ", len(payload), 0x4D4D, kind, 0, request_id) + payload)
            held = sum(len(incoming.received) for incoming in wire._incoming.values())
            assert held <= SMALL.window_bytes + SMALL.max_message_bytes
    except FramingError as error:
        reason = error.reason
    assert re.fullmatch("[a-z-]+", reason)


def test_frames_of_two_long_messages_take_turns():
    one, _ = pair()
    one.send(1, b"a" * (3 * MAX_FRAME_BYTES))
    one.send(2, b"b" * (3 * MAX_FRAME_BYTES))
    order = [request_id for _, request_id, _ in frames(one.take(1 << 30))]
    assert order[:6] == [1, 2, 1, 2, 1, 2]


def test_a_short_message_does_not_wait_for_a_long_one():
    one, other = pair()
    one.send(1, b"a" * (100 * MAX_FRAME_BYTES))
    other.receive(one.take())
    one.send(2, b"short")
    events = other.receive(one.take(2 * MAX_FRAME_BYTES))
    assert (MESSAGE, 2, b"short") in events


def test_control_overtakes_data():
    one, other = pair()
    one.send(1, b"a" * (3 * MAX_FRAME_BYTES))
    one.send(1, b"b")
    one.send_control(9, b"cancel")
    assert carry(one, other)[0] == (CONTROL, 9, b"cancel")


def test_a_ping_is_answered_without_the_application():
    one, other = pair()
    one.ping(b"12345678")
    assert carry(one, other) == []
    assert carry(other, one) == [(PONG, 0, b"12345678")]


def test_the_reason_of_a_close_arrives():
    one, other = pair()
    one.close("peer-does-not-read")
    assert carry(one, other) == [(CLOSED, 0, b"peer-does-not-read")]


def test_messages_wait_for_credit_and_start_when_it_comes():
    one, other = pair(SMALL)
    for number in range(5):
        one.send(number + 1, b"x")
    assert len(carry(one, other)) == SMALL.window_messages
    assert one.queued_bytes == 2
    other.grant(1, 1)
    carry(other, one)
    assert [request_id for _, request_id, _ in carry(one, other)] == [4]


def test_credit_in_bytes_may_be_overdrawn_by_one_message_only():
    one, other = pair(SMALL)
    one.send(1, b"a" * (3 * MAX_FRAME_BYTES))
    one.send(2, b"b")
    assert [request_id for _, request_id, _ in carry(one, other)] == [1]
    other.grant(1, 3 * MAX_FRAME_BYTES)
    carry(other, one)
    assert [request_id for _, request_id, _ in carry(one, other)] == [2]


def test_a_sender_without_credit_is_cut_off():
    one, _ = pair(SMALL)
    stranger = Wire(SMALL)
    for number in range(3):
        stranger.receive(struct.pack("<IHBBQ", 12, 0x4D4D, 6, 0, 0) + struct.pack("<IQ", 100, 1 << 30))
        stranger.send(number + 1, b"x")
    one.receive(stranger.take())
    stranger.send(9, b"x")
    with pytest.raises(FramingError, match="credit-exceeded"):
        one.receive(stranger.take())


def test_before_the_window_is_open_only_control_may_come():
    one, other = Wire(), Wire()
    one.receive(struct.pack("<IHBBQ", 12, 0x4D4D, 6, 0, 0) + struct.pack("<IQ", 100, 1 << 30))
    one.send_control(1, b"hello")
    assert carry(one, other) == [(CONTROL, 1, b"hello")]
    one.send(2, b"data")
    with pytest.raises(FramingError, match="credit-exceeded"):
        carry(one, other)


def test_a_message_not_begun_is_taken_back_without_a_trace():
    one, other = pair(SMALL)
    for number in range(4):
        one.send(number + 1, b"x")
    assert one.withdraw(4)
    assert len(carry(one, other)) == 3
    assert one.queued_bytes == 0


def test_a_message_half_sent_is_taken_back_and_its_credit_returns():
    one, other = pair(SMALL)
    one.send(1, b"a" * (3 * MAX_FRAME_BYTES))
    other.receive(one.take(1))
    assert one.withdraw(1)
    assert carry(one, other) == []
    assert not other._incoming
    carry(other, one)
    one.send(2, b"b")
    assert carry(one, other) == [(MESSAGE, 2, b"b")]


def test_a_message_that_has_left_cannot_be_taken_back():
    one, other = pair()
    one.send(1, b"a")
    carry(one, other)
    assert not one.withdraw(1)


def test_a_message_over_the_limit_is_refused_at_both_ends():
    one, other = pair(SMALL)
    with pytest.raises(FramingError, match="message-too-large"):
        one.send(1, b"a" * (SMALL.max_message_bytes + 1))
    generous, _ = pair()
    generous.send(1, b"a" * (SMALL.max_message_bytes + 1))
    with pytest.raises(FramingError, match="message-too-large"):
        other.receive(generous.take(1))


def test_a_peer_that_never_reads_its_pongs_is_refused():
    _, wire = pair(Limits(max_control_queue=10))
    ping = struct.pack("<IHBBQ", 0, 0x4D4D, 7, 0, 0)
    with pytest.raises(FramingError, match="peer-does-not-read"):
        wire.receive(ping * 11)


def test_what_waits_for_a_peer_is_bounded():
    one, _ = pair(Limits(max_queued_bytes=100))
    one.send(1, b"a" * 60)
    with pytest.raises(FramingError, match="peer-does-not-read"):
        one.send(2, b"a" * 60)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (struct.pack("<IHBBQ", 0, 0x4D4E, 1, 0, 1), "not-a-frame"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not-a-frame"),
        (struct.pack("<IHBBQ", MAX_FRAME_BYTES + 1, 0x4D4D, 1, 0, 1), "frame-too-large"),
        (struct.pack("<IHBBQ", 0, 0x4D4D, 77, 0, 1), "unknown-kind"),
        (struct.pack("<IHBBQ", 1, 0x4D4D, 3, 0, 1) + b"x", "no-such-message"),
        (struct.pack("<IHBBQ", 0, 0x4D4D, 4, 0, 1), "no-such-message"),
        (struct.pack("<IHBBQ", 6, 0x4D4D, 2, 0, 1) + struct.pack("<I", 1) + b"xx", "message-overrun"),
        (struct.pack("<IHBBQ", 4, 0x4D4D, 2, 0, 1) + struct.pack("<I", 1), "empty-frame"),
        (struct.pack("<IHBBQ", 12, 0x4D4D, 6, 0, 0) + struct.pack("<IQ", 1, 1 << 63), "credit-overflow"),
        (struct.pack("<IHBBQ", 1, 0x4D4D, 6, 0, 0) + b"x", "not-a-frame"),
    ],
)
def test_each_broken_rule_has_its_name(frame, reason):
    _, wire = pair()
    with pytest.raises(FramingError) as caught:
        wire.receive(frame)
    assert caught.value.reason == reason
