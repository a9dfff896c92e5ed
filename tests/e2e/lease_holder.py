"""A holder of one lease in a process of its own: prints one line for each thing it hears, says InUse once loaded.

Arguments: target, version resource name. It never gives the lease back by itself.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator

import grpc
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc

KEEPALIVE = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 10_000)]


def main(target: str, model_version: str) -> None:
    to_send: queue.SimpleQueue[lifecycle_pb2.AcquireRequest] = queue.SimpleQueue()
    want = lifecycle_pb2.Want(model_version=model_version, priority=20)  # type: ignore[arg-type]
    want.deadline.FromJsonString("2100-01-01T00:00:00Z")
    to_send.put(lifecycle_pb2.AcquireRequest(want=want))

    def requests() -> Iterator[lifecycle_pb2.AcquireRequest]:
        while True:
            yield to_send.get()

    with grpc.insecure_channel(target, options=KEEPALIVE) as channel:
        try:
            for heard in lifecycle_pb2_grpc.LifecycleLeaseServiceStub(channel).Acquire(requests()):
                kind = heard.WhichOneof("message")
                if kind == "loaded":
                    to_send.put(lifecycle_pb2.AcquireRequest(in_use=lifecycle_pb2.InUse(in_flight=1)))
                print(kind, flush=True)
        except grpc.RpcError as error:
            print("ended", error.code().name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
