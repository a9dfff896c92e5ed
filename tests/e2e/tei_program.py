"""A client of text-embeddings-inference in a process of its own: stubs that others made of the published messages, and
nothing of ours.

Reads a job (JSON) from standard input: {"target", "models": {"embed", "rerank", "classify"}, "texts", "query"}. Writes
one JSON object with what each call answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from tei_client.stubs import tei_pb2 as tei  # type: ignore[import-not-found]
from tei_client.stubs import tei_pb2_grpc as stubs


def main() -> None:
    job = json.load(sys.stdin)
    texts, query, models = job["texts"], job["query"], job["models"]
    told: dict[str, Any] = {}
    with grpc.insecure_channel(job["target"]) as channel:

        def ask(name: str, method: Any, request: Any, model: str, **metadata: str) -> Any:
            keys = {"x-model-id": models[model], "x-precision": "exact", **metadata}
            answer = method(request, timeout=120, metadata=tuple(keys.items()))
            if isinstance(request, Iterator) and not hasattr(answer, "DESCRIPTOR"):
                found = list(answer)
                told[name] = [MessageToDict(one, preserving_proto_field_name=True) for one in found]
                return found
            told[name] = MessageToDict(answer, preserving_proto_field_name=True)
            return answer

        embed, tokenize = stubs.EmbedStub(channel), stubs.TokenizeStub(channel)
        predict, rerank = stubs.PredictStub(channel), stubs.RerankStub(channel)
        for model in models:
            ask(f"info {model}", stubs.InfoStub(channel).Info, tei.InfoRequest(), model)
        for n, text in enumerate(texts[:3]):
            ask(f"embed {n}", embed.Embed, tei.EmbedRequest(inputs=text, normalize=True, truncate=True), "embed")
        ask("embed plain", embed.Embed, tei.EmbedRequest(inputs=texts[0], truncate=True), "embed")
        ask(
            "embed stream",
            embed.EmbedStream,
            iter([tei.EmbedRequest(inputs=text, normalize=True, truncate=True) for text in texts]),
            "embed",
        )
        ask("embed all", embed.EmbedAll, tei.EmbedAllRequest(inputs=texts[0]), "embed")
        found = ask("tokenize", tokenize.Tokenize, tei.EncodeRequest(inputs=texts[0], add_special_tokens=True), "embed")
        ids = [token.id for token in found.tokens]
        ask("decode", tokenize.Decode, tei.DecodeRequest(ids=ids, skip_special_tokens=True), "embed")
        ask("decode all", tokenize.Decode, tei.DecodeRequest(ids=ids), "embed")
        ask("predict", predict.Predict, tei.PredictRequest(inputs=texts[0]), "classify")
        stream = iter([tei.PredictRequest(inputs=text, truncate=True) for text in texts])
        ask("predict stream", predict.PredictStream, stream, "classify")
        ask(
            "rerank",
            rerank.Rerank,
            tei.RerankRequest(query=query, texts=texts, truncate=True, return_text=True),
            "rerank",
        )
        stream = iter([tei.RerankStreamRequest(query=query, text=text, truncate=True) for text in texts])
        ask("rerank stream", rerank.RerankStream, stream, "rerank")
        try:
            ask("sparse", embed.EmbedSparse, tei.EmbedSparseRequest(inputs="a"), "embed")
        except grpc.RpcError as error:
            told["sparse"] = error.code().name  # type: ignore[attr-defined]
        try:
            embed.Embed(tei.EmbedRequest(inputs="a"), timeout=60)
        except grpc.RpcError as error:
            told["no model"] = error.code().name  # type: ignore[attr-defined]
    told["modules"] = sorted(name for name in sys.modules if name.startswith("modelmora"))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
