"""One client in a process of its own: embeds its share of texts, one or a few a call, and writes down what it got.

Reads a job (JSON) from standard input: {"target", "model", "texts": [[index, text], …], "seed"}. Writes one JSON
object: {"answers": [[index, base64 of the vector], …], "errors": [[index, message], …]}.
"""

from __future__ import annotations

import base64
import json
import random
import sys

import grpc
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc


def main() -> None:
    job = json.load(sys.stdin)
    chance = random.Random(job["seed"])
    texts = job["texts"]
    answers: list[tuple[int, str]] = []
    failures: list[tuple[int, str]] = []
    with grpc.insecure_channel(job["target"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while texts:
            count = chance.choice((1, 1, 1, 1, 2, 5))
            share, texts = texts[:count], texts[count:]
            request = inference_pb2.EmbedRequest(model=job["model"], texts=[text for _, text in share])
            request.encoding = chance.choice(
                (inference_pb2.VECTOR_ENCODING_BYTES, inference_pb2.VECTOR_ENCODING_FLOATS)
            )
            try:
                answer = stub.Embed(request, timeout=120)
            except grpc.RpcError as error:
                failures += [(index, str(error)) for index, _ in share]
                continue
            rows = _rows(answer, len(share))
            answers += [(index, base64.b64encode(row).decode()) for (index, _), row in zip(share, rows, strict=True)]
    json.dump({"answers": answers, "errors": failures}, sys.stdout)


def _rows(answer: inference_pb2.EmbedResponse, count: int) -> list[bytes]:
    """Each text's vector as little-endian float32, whichever encoding was asked for."""
    if answer.vectors.shape:
        assert answer.vectors.shape[0] == count
        width = len(answer.vectors.data) // count
        return [answer.vectors.data[i * width : (i + 1) * width] for i in range(count)]
    import array

    assert len(answer.embeddings) == count
    return [array.array("f", embedding.values).tobytes() for embedding in answer.embeddings]


if __name__ == "__main__":
    main()
