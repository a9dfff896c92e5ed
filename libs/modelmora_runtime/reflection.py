"""Server reflection under its stable name and the old one: grpcurl and `buf curl` need no proto files.

grpcio-reflection knows `grpc.reflection.v1alpha` only. The messages of v1 are the same on the wire, so one servicer
answers both; a descriptor of v1 is made from v1alpha's, so that v1 can describe itself too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


def servicer(service_names: Sequence[str]) -> object:
    """Answers for these services and for reflection itself."""
    _describe_v1()
    return aio.ReflectionServicer([*service_names, V1, V1ALPHA])


add_v1alpha: Callable[[Any, Any], None] = reflection_pb2_grpc.add_ServerReflectionServicer_to_server


def add_v1(servicer: Any, server: Any) -> None:
    """As the generated function would be."""

    class Renamed:
        def add_generic_rpc_handlers(self, handlers: object) -> None:
            pass

        def add_registered_method_handlers(self, service: str, handlers: object) -> None:
            server.add_registered_method_handlers(V1, handlers)

    add_v1alpha(servicer, Renamed())


def _describe_v1() -> None:
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
        return
    except KeyError:
        pass
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    # Package and type names hold the old name, with their length before them when serialised: hence through text.
    text = text_format.MessageToString(alpha).replace("grpc.reflection.v1alpha", "grpc.reflection.v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    v1.name = "grpc/reflection/v1/reflection.proto"
    pool.AddSerializedFile(v1.SerializeToString())
