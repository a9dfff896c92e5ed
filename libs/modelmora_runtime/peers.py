"""Channels from one context to another: over this host's Unix socket, or to wherever the settings say.

A channel looks like a `grpc.aio.Channel` to the stubs. Its calls carry who we are and the trace, have a deadline, and
raise the error that left the other side. They are wrapped here and not by client interceptors, which cost a task and
about 0.1 ms a call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import Any

import grpc
from modelmora.errors import FailedPrecondition, Unavailable
from modelmora.status import WRITE_FAILED, error_from_rpc

from modelmora_runtime import telemetry
from modelmora_runtime.auth import PEER_KEY
from modelmora_runtime.health import duty_of

Metadata = Sequence[tuple[str, str | bytes]]

ONE_ON_DUTY = frozenset({"lifecycle"})
"""Contexts of which several processes may run while one at a time serves. Where a target has several addresses, these
are called at the one on duty; other contexts at the first that takes connections, for each of them can answer."""


class PeerNotConfigured(FailedPrecondition):
    """The context is neither opened here nor named in the setting `platform.peers`."""


class Peers:
    """The other contexts, by name."""

    def __init__(
        self,
        *,
        mounted: Sequence[str],
        local_target: str,
        peer_key: str,
        targets: Mapping[str, str],
        service_token: str | None = None,
        default_deadline_seconds: float = 60.0,
        max_message_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """`mounted` are reached at `local_target` (`unix:/…`) with `peer_key`, others at `targets` with the token."""
        self._mounted = frozenset(mounted)
        self._local_target = local_target
        self._targets = targets
        self._local_identity: Metadata = ((PEER_KEY, peer_key),)
        self._identity: Metadata = (("authorization", f"Bearer {service_token}"),) if service_token else ()
        self._default_deadline_seconds = default_deadline_seconds
        self._options = channel_options(max_message_bytes)
        self._channels: dict[tuple[str, bool], PeerChannel] = {}

    def has(self, context: str) -> bool:
        """Whether there is a place to call."""
        return context in self._mounted or context in self._targets

    def channel(self, context: str) -> grpc.aio.Channel:
        """The channel to a context; the same one each time. It connects when it is first used, and again after a loss.

        Raises PeerNotConfigured.
        """
        if not self.has(context):
            raise PeerNotConfigured(
                f"{context} is not opened here; set platform.peers to say where it is: {{{context}: host:port}}",
                context=context,
            )
        local = context in self._mounted
        target = self._local_target if local else self._targets[context]
        one_on_duty = not local and context in ONE_ON_DUTY and has_several_addresses(target)
        key = (target, one_on_duty)
        if key not in self._channels:
            identity = self._local_identity if local else self._identity
            options = [*self._options, to_who_serves(duty_of(context))] if one_on_duty else self._options
            raw = grpc.aio.insecure_channel(target, options=options)
            self._channels[key] = PeerChannel(raw, identity, self._default_deadline_seconds)
        return self._channels[key]

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Options of a channel inside the platform: keepalive, quick reconnects, our message limit."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Services start in any order: a peer that is not there yet is tried again soon. The second figure is none of a
        # pause, for all its name: an attempt ends after so long without the peer's first word, and one whose machine
        # stood still for a tenth of a second was refused.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def has_several_addresses(target: str) -> bool:
    """As in `ipv4:10.0.0.1:50051,10.0.0.2:50051`; what a name stands for in DNS nobody knows beforehand."""
    return target.startswith(("ipv4:", "ipv6:")) and "," in target


def to_who_serves(health: str) -> tuple[str, str]:
    """An option of a channel: calls go only to addresses where grpc.health.v1 says SERVING under this name. gRPC
    watches all of them, so a change is known at once; it does so with round_robin, never with pick_first, which stays
    with the first that takes connections."""
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": health}}
    return ("grpc.service_config", json.dumps(config))


class PeerChannel(grpc.aio.Channel):
    """A channel whose calls have identity, trace, deadline and named errors."""

    def __init__(self, channel: grpc.aio.Channel, identity: Metadata, default_deadline_seconds: float) -> None:
        self._channel = channel
        self._identity = tuple(identity)
        self._default_deadline_seconds = default_deadline_seconds

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls(self._channel.unary_unary(*args, **kwargs), self._default_deadline_seconds)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls(self._channel.stream_unary(*args, **kwargs), self._default_deadline_seconds)

    # Streams of answers live as long as what they watch; only a caller can give them a deadline.

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls(self._channel.unary_stream(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls(self._channel.stream_stream(*args, **kwargs), None)

    def _calls(self, method: Callable[..., Any], deadline_seconds: float | None) -> Callable[..., PeerCall]:
        identity = self._identity

        def call(
            *request: Any, timeout: float | None = None, metadata: Metadata | None = None, **kwargs: Any
        ) -> PeerCall:
            sent = identity if not metadata else (*metadata, *identity)
            trace = telemetry.traceparent()
            if trace is not None:
                sent = (*sent, (telemetry.TRACEPARENT, trace))
            seconds = deadline_seconds if timeout is None else timeout
            return PeerCall(method(*request, timeout=seconds, metadata=sent, **kwargs))

        return call

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> PeerChannel:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()


class PeerCall:
    """A grpc.aio call of any kind that raises modelmora.errors instead of AioRpcError."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        # cancel, cancelled, done, code, details, trailing_metadata, add_done_callback, time_remaining …
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for answer in self._call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        return await self._named(self._call.read())

    async def write(self, request: Any) -> None:
        await self._named(self._call.write(request))

    async def done_writing(self) -> None:
        await self._named(self._call.done_writing())

    async def initial_metadata(self) -> Any:
        return await self._named(self._call.initial_metadata())

    async def wait_for_connection(self) -> None:
        await self._named(self._call.wait_for_connection())

    async def _named(self, pending: Any) -> Any:
        """Unavailable where the other side ended the stream while it was written to: grpc.aio hides why it did."""
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            if error.details() == WRITE_FAILED:
                raise Unavailable("the other side ended the stream while it was written to") from error
            raise error_from_rpc(error) from error
        except asyncio.InvalidStateError:
            # grpc.aio's word for writing to a call that ended; why it ended is in its status.
            code = await self._call.code()
            if code is grpc.StatusCode.OK:
                raise
            trailing, details = await self._call.trailing_metadata(), await self._call.details()
            raise error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)) from None
