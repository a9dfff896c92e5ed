"""The ceiling: sentence-transformers in process, behind a greedy micro-batcher. Imports nothing of ours.

It is the same engine and profile set the same way as ours. torch/fp32: what waits is sorted by length and cut where
padding and the fixed cost of one more pass balance. torch/bf16: BERT written out, linear layers over all tokens of a
pass at once, attention text by text, no padding. openvino and onnx: the encoder is written out by the library's own
converter, texts are sorted by length and computed in groups of 512 tokens, padded to a multiple of 8, with mean pooling
in numpy. Rows are returned pass by pass, and OpenMP and oneDNN have the same environment. Arguments: the model's
folder, the profile.

Reads one command a line from standard input and answers each with one line of JSON: `{"texts": […]}` sets the workload,
`{"mode": "clients", "clients": 32, "seconds": 5, "seed": 1}` runs that many asyncio clients, each with one text at a
time, `{"mode": "bulk", "seconds": 5, "seed": 1}` encodes in large calls. The seed says which texts, as it does for the
load that ours gets. A sample of answers is checked against the text's own vector.
"""

from __future__ import annotations

import asyncio
import json
import platform
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy
import torch
from sentence_transformers import SentenceTransformer

MOST_IN_A_BATCH = 256
PASS_TOKENS = 28
PACKED_TOKENS = 1024


class Padded:
    """The model's own pipeline in fp32."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def passes(self, lengths: list[int]) -> list[list[int]]:
        return passes(lengths)

    def forward(self, tokens: list[dict[str, Any]]) -> Any:
        features = dict(self.model.tokenizer.pad(tokens, padding=True, return_tensors="pt"), modality="text")
        with torch.inference_mode():
            vectors = self.model(features)["sentence_embedding"].float()
            return torch.nn.functional.normalize(vectors, dim=-1).numpy()


class Packed:
    """BERT with mean pooling in bf16, residuals and norms in fp32, all tokens of a pass in one row."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._bert = model[0].model
        self._layers = []
        for layer in self._bert.encoder.layer:
            three = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
            self._layers.append((
                self._lay_out(torch.cat([one.weight for one in three]), torch.cat([one.bias for one in three])),
                *(self._lay_out(one.weight, one.bias)
                  for one in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)),
                layer.attention.output.LayerNorm, layer.output.LayerNorm,
            ))  # fmt: skip

    def passes(self, lengths: list[int]) -> list[list[int]]:
        found: list[list[int]] = []
        room = 0
        for place, length in enumerate(lengths):
            if length > room or not found:
                found.append([])
                room = PACKED_TOKENS
            found[-1].append(place)
            room -= length
        return found

    @torch.inference_mode()
    def forward(self, tokens: list[dict[str, Any]]) -> Any:
        lengths = [len(one["input_ids"]) for one in tokens]
        total, heads, width = sum(lengths), self._bert.config.num_attention_heads, self._bert.config.hidden_size
        inputs = torch.tensor([token for one in tokens for token in one["input_ids"]])
        embed = self._bert.embeddings
        x = embed.word_embeddings(inputs) + embed.token_type_embeddings.weight[0]
        x = embed.LayerNorm(x + embed.position_embeddings(torch.cat([torch.arange(n) for n in lengths])))
        for project, out, up, down, norm, last_norm in self._layers:
            q, k, v = self._linear(x, project).view(total, 3, heads, -1).permute(1, 2, 0, 3)
            attended = torch.empty(total, heads, width // heads, dtype=torch.bfloat16)
            start = 0
            for n in lengths:
                part = slice(start, start + n)
                one = torch.nn.functional.scaled_dot_product_attention(
                    q[None, :, part], k[None, :, part], v[None, :, part]
                )
                attended[part] = one[0].transpose(0, 1)
                start += n
            x = norm(self._linear(attended.view(total, width), out) + x)
            x = last_norm(self._linear(self._linear(x, up, "gelu", "none"), down) + x)
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        sums = torch.zeros(len(lengths), width).index_add_(0, rows, x)
        return torch.nn.functional.normalize(sums, dim=-1).numpy()

    @staticmethod
    def _lay_out(weight: Any, bias: Any) -> tuple[Any, Any]:
        weight, bias = (one.detach().to(torch.bfloat16) for one in (weight, bias))
        return torch.ops.mkldnn._reorder_linear_weight(weight, 512), bias

    @staticmethod
    def _linear(x: Any, part: tuple[Any, Any], then: str = "none", how: str = "") -> Any:
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), *part, then, [], how)


class Converted:
    """The encoder by OpenVINO (fp32 or with the hint bf16) or ONNX Runtime, as either documents it."""

    def __init__(self, model: Any, backend: str, precision: str) -> None:
        self.model = model
        sample = model.tokenizer(["a first text", "short"], padding=True, return_tensors="pt")
        self._names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in sample]
        names, bert = self._names, model[0].model

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bert = bert

            def forward(self, *tensors: Any) -> Any:
                return self.bert(**dict(zip(names, tensors, strict=True)), return_dict=True).last_hidden_state

        example, threads = tuple(sample[name] for name in names), torch.get_num_threads()
        if backend == "openvino":
            sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
            import openvino

            settings = {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
            }
            converted = openvino.convert_model(Encoder().eval(), example_input=example)
            request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()

            def infer(arrays: list[Any]) -> Any:
                request.infer(arrays, share_inputs=True)
                return request.get_output_tensor(0).data

        else:
            import onnxruntime

            axes = {name: {0: "rows", 1: "tokens"} for name in (*names, "out")}
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                torch.onnx.export(
                    Encoder().eval(), example, f"{folder}/model.onnx", input_names=names, output_names=["out"],
                    dynamic_axes=axes, opset_version=17, dynamo=False,
                )  # fmt: skip
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)

            def infer(arrays: list[Any]) -> Any:
                return session.run(None, dict(zip(names, arrays, strict=True)))[0]

        self._infer = infer

    def passes(self, lengths: list[int]) -> list[list[int]]:
        found: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            wide = -(-lengths[place] // 8) * 8
            if not found or (len(found[-1]) + 1) * wide > 512:
                found.append([])
            found[-1].append(place)
        return found

    def forward(self, tokens: list[dict[str, Any]]) -> Any:
        longest = -(-max(len(one["input_ids"]) for one in tokens) // 8) * 8
        arrays = {name: numpy.zeros((len(tokens), longest), numpy.int64) for name in self._names}
        for place, one in enumerate(tokens):
            count = len(one["input_ids"])
            for name, array in arrays.items():
                array[place, :count] = 1 if name == "attention_mask" else one[name]
        mask = arrays["attention_mask"][..., None].astype(numpy.float32)
        sums = (self._infer(list(arrays.values())) * mask).sum(1)
        return sums / numpy.linalg.norm(sums, axis=1, keepdims=True)


Engine = Padded | Packed | Converted


class MicroBatcher:
    """Whatever waits when the model is free is the next batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[tuple[str, asyncio.Future[Any]]] = []
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self.batches = 0
        self.entries = 0

    async def embed(self, text: str) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, answer))
        self._news.set()
        return await answer

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            batch, self._waiting = self._waiting[:MOST_IN_A_BATCH], self._waiting[MOST_IN_A_BATCH:]
            if not self._waiting:
                self._news.clear()
            texts = [text for text, _ in batch]
            tokens = await loop.run_in_executor(self._thread, tokenise, self._engine.model, texts)
            for places in self._engine.passes([len(one["input_ids"]) for one in tokens]):
                group = [tokens[place] for place in places]
                rows = await loop.run_in_executor(self._thread, self._engine.forward, group)
                self.batches += 1
                self.entries += len(places)
                for place, row in zip(places, rows, strict=True):
                    if not batch[place][1].done():
                        batch[place][1].set_result(row)


def tokenise(model: Any, texts: list[str]) -> list[dict[str, Any]]:
    found = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length, return_attention_mask=False)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def passes(lengths: list[int]) -> list[list[int]]:
    """Places sorted by length, cut where padding plus a fixed cost of PASS_TOKENS for each pass is least."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cost, begin = [0.0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        price, start = min((cost[start] + (end - start) * longest + PASS_TOKENS, start) for start in range(end))
        cost.append(price)
        begin.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]


async def clients(
    engine: Engine, texts: list[str], truth: dict[int, Any], count: int, seconds: float, seed: int
) -> dict[str, Any]:
    batcher = MicroBatcher(engine)
    running = asyncio.create_task(batcher.run())
    latencies: list[float] = []
    wrong = 0
    start = time.perf_counter()

    async def client(number: int) -> None:
        nonlocal wrong
        chance = random.Random(seed * 1000 + number)
        while time.perf_counter() - start < seconds:
            index = chance.randrange(len(texts))
            asked = time.perf_counter()
            row = await batcher.embed(texts[index])
            latencies.append(time.perf_counter() - asked)
            if index in truth and float(row @ truth[index]) < 0.9999:
                wrong += 1

    await asyncio.gather(*(client(number) for number in range(count)))
    elapsed = time.perf_counter() - start
    running.cancel()
    return {
        "count": len(latencies),
        "seconds": elapsed,
        "latencies": latencies,
        "wrong": wrong,
        "mean_batch": batcher.entries / max(1, batcher.batches),
    }


def bulk(engine: Engine, texts: list[str], seconds: float, seed: int) -> dict[str, Any]:
    count, chance, start = 0, random.Random(seed * 1000), time.perf_counter()
    while time.perf_counter() - start < seconds:
        at = chance.randrange(len(texts))
        share = [texts[(at + i) % len(texts)] for i in range(256)]
        tokens = tokenise(engine.model, share)
        for places in engine.passes([len(one["input_ids"]) for one in tokens]):
            engine.forward([tokens[place] for place in places])
        count += len(share)
    return {"count": count, "seconds": time.perf_counter() - start, "latencies": [], "wrong": 0}


def main(folder: str, profile: str = "torch/fp32") -> None:
    model = SentenceTransformer(folder, device="cpu")
    backend, _, precision = profile.partition("/")
    engine: Engine
    if backend == "torch":
        engine = {"fp32": Padded, "bf16": Packed}[precision](model)
    else:
        engine = Converted(model, backend, precision)
    texts: list[str] = []
    truth: dict[int, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if "texts" in command:
            texts = command["texts"]
            sample = range(0, len(texts), max(1, len(texts) // 64))
            rows = model.encode([texts[i] for i in sample], batch_size=1, normalize_embeddings=True)
            truth = {i: numpy.asarray(row) for i, row in zip(sample, rows, strict=True)}
            answer: dict[str, Any] = {
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
                "profile": profile,
                "truth": {str(index): row.tolist() for index, row in truth.items()},
            }
        elif command["mode"] == "bulk":
            answer = bulk(engine, texts, command["seconds"], command["seed"])
        else:
            answer = asyncio.run(clients(engine, texts, truth, command["clients"], command["seconds"], command["seed"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
