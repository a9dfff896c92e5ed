"""`inference.GRPCInferenceService`: the Open Inference Protocol with Triton's extensions, on the native calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import modelmora
from modelmora_runtime.auth import OPERATORS, READERS

from modelmora_inference.protocols import oip_pb2 as oip
from modelmora_inference.protocols import oip_pb2_grpc

FULL_NAME = "inference.GRPCInferenceService"
ACCESS = {
    **dict.fromkeys(
        (method.name for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods), READERS
    ),
    "RepositoryModelLoad": OPERATORS,
    "RepositoryModelUnload": OPERATORS,
}
EXTENSIONS: tuple[str, ...] = ()


class OipService(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """Translates. What it inherits (shared memory, settings of traces and logs) is not offered."""

    def __init__(self, serves: Callable[[], bool]) -> None:
        self._serves = serves

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._serves())

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Any) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="modelmora", version=modelmora.__version__, extensions=EXTENSIONS)
