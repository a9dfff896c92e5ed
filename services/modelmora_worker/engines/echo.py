"""The echo engine: vectors made from the text itself, and every way an engine can go wrong, by option.

It makes scheduler and lifecycle rules testable in milliseconds and lets users rehearse capacity plans. A vector is a
function of (seed, text) alone and has unit length, so a swapped row shows; tokens are words.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import re
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modelmora import errors

from modelmora_worker.engines import base
from modelmora_worker.engines.tokens import row_of

EXACT = base.Profile("echo", "fp32", batch_rule="none")
MAX_BATCH_ENTRIES = 1024
MAX_BATCH_TOKENS = 1 << 20
MAX_INPUT_TOKENS = 1 << 16
_WORD = re.compile(r"\S+")


def vector(seed: int, text: str, dimensions: int) -> list[float]:
    """Unit vector of (seed, text): the values of SHAKE-128 as numbers in [-1, 1), normalised."""
    shake = hashlib.shake_128(b"%d\0%s" % (seed, text.encode("utf-8", "surrogatepass")))
    # What an echo costs is taken from what calls there are for the platform: integers as they are, one pass.
    return unit(struct.unpack(f"<{dimensions}h", shake.digest(2 * dimensions)))


def unit(values: Sequence[float]) -> list[float]:
    """The same direction with length 1; zeros stay."""
    length = math.hypot(*values)
    return [v / length for v in values] if length else list(values)


class EchoEngine:
    """See the table row for what each option does."""

    batching = base.Batching.STATIC

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}
        self._task = "txt2embed"
        self._fast = False
        self._batches = 0
        self._memory: list[mmap.mmap] = []
        self._max_input_tokens = MAX_INPUT_TOKENS
        self.token_dimensions = 0

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        self._options = options = base.read_options(base.TABLE["echo"], spec.options)
        asked = spec.profile or base.Profile("", "")
        name = f"{asked.backend or 'echo'}/{asked.precision or 'fp32'}"
        offered = base.TABLE["echo"].profiles
        if name not in offered:
            raise errors.InvalidArgument.at("engine_profile", f"this engine has the profiles {', '.join(offered)}")
        self._fast = name == "echo/bf16"
        self._task = base.task_of(base.TABLE["echo"], spec)
        total = options["memory_bytes"]
        progress("memory", 0, total)
        step = options["memory_step_bytes"] or total
        for taken in range(0, total, step or 1):
            self._memory.append(_touched(min(step, total - taken)))
            progress("memory", min(taken + step, total), total)
            time.sleep(options["memory_step_seconds"])
        if options["load_seconds"]:
            time.sleep(options["load_seconds"])
        if options["fail_load"]:
            raise errors.LoadFailed(options["fail_load"])
        progress("ready", total, total)
        self._max_input_tokens = options["max_input_tokens"] or MAX_INPUT_TOKENS
        self.token_dimensions = options["dimensions"]
        return base.Footprint(
            memory_bytes={} if options["claimed_bytes"] is None else {"host": options["claimed_bytes"]},
            profile=base.Profile("echo", "bf16", batch_rule="none") if self._fast else EXACT,
            max_input_tokens=self._max_input_tokens,
            embedding_dimensions=options["dimensions"] if self._task == "txt2embed" else 0,
            max_batch_tokens=options["max_batch_tokens"] or MAX_BATCH_TOKENS,
            max_batch_entries=options["max_batch_entries"] or MAX_BATCH_ENTRIES,
            labels=[f"label-{n}" for n in range(options["labels"])] if self._task == "classification" else (),
        )

    def prepare(self, texts: Sequence[base.Text], exact: bool = False) -> base.Prepared:
        prepared = base.Prepared()
        batch = base.MicroBatch([], [], [], [], exact)
        most = self._options["micro_batch_entries"] or len(texts)
        for position, entry in enumerate(texts):
            # Two texts are one, with what no text has between them.
            text = f"{entry.text}\0 {entry.pair}" if entry.pair else entry.text or entry.data.decode("latin-1")
            words = text.split()
            limit = self._max_input_tokens
            if len(words) > limit and not entry.truncate:
                error = errors.TextTooLong(f"the text has {len(words)} tokens, the model takes {limit}")
                prepared.failed.append((position, error))
                continue
            if entry.prompt:
                prepared.failed.append((position, base.unknown_prompt(entry.prompt, ())))
                continue
            if entry.dimensions > self._options["dimensions"]:
                prepared.failed.append(
                    (position, base.too_many_dimensions(entry.dimensions, self._options["dimensions"]))
                )
                continue
            if not batch.positions or len(batch.positions) >= most:
                batch = base.MicroBatch([], [], [], [], exact)
                prepared.micro_batches.append(batch)
            batch.positions.append(position)
            batch.input_tokens.append(min(len(words), limit))
            batch.truncated.append(len(words) > limit)
            batch.items.append((" ".join(words[:limit]) if len(words) > limit else text, entry))
        return prepared

    def infer(self, batch: base.MicroBatch) -> base.Rows:
        options = self._options
        fast = self._fast and not batch.exact
        self._misbehave([text for text, _ in batch.items], fast)
        delay = options["delay_seconds"] + options["delay_per_token_seconds"] * sum(batch.input_tokens)
        if delay:
            time.sleep(delay / 2 if fast else delay)
        rows = base.Rows(b"", [], profile=EXACT if self._fast and not fast else None)
        parts = []
        for position, (text, entry) in zip(batch.positions, batch.items, strict=True):
            if options["fail_on_text"] and options["fail_on_text"] in text:
                rows.failed.append((position, errors.InvalidArgument("the text is one this engine was told to fail")))
                rows.dimensions.append(0)
                continue
            values = self._values(text, entry)
            if fast:
                values = [in_bf16(value + options["fast_error"] * (-1) ** n) for n, value in enumerate(values)]
                values = unit(values) if self._task == "txt2embed" else values
            if entry.dimensions:
                values = values[: entry.dimensions]
                if entry.normalize:
                    values = unit(values)
            rows.dimensions.append(len(values))
            parts.append(struct.pack(f"<{len(values)}f", *values))
        rows.data = b"".join(parts)
        return rows

    def tokens(self, texts: Sequence[base.Text]) -> Sequence[bytes]:
        return [
            row_of([(zlib.crc32(word[0].encode()) >> 1, *word.span(), False) for word in _WORD.finditer(entry.text)])
            for entry in texts
        ]

    def texts(self, entries: Sequence[base.Text]) -> Sequence[bytes]:
        """Nobody knows the words of a hash: the numbers themselves."""
        return [" ".join(map(str, entry.token_ids)).encode("utf-32-le") for entry in entries]

    def token_vectors(self, batch: base.MicroBatch) -> base.Rows:
        """The vector of each word."""
        self._misbehave([text for text, _ in batch.items], False)
        rows = base.Rows(b"", [])
        for text, _ in batch.items:
            values = [value for word in text.split() for value in self._vector(word)]
            rows.data += struct.pack(f"<{len(values)}f", *values)
            rows.dimensions.append(len(values))
        return rows

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        raise errors.TaskNotSupported("engine echo does not generate")

    def close(self) -> None:
        for memory in self._memory:
            memory.close()
        self._memory.clear()

    def _values(self, text: str, entry: base.Text) -> list[float]:
        """The row of one text: its vector, or scores made from that."""
        if self._task == "txt2embed":
            return self._vector(text)
        if self._task == "question_answering":
            # The words of the context, as they come.
            words = list(_WORD.finditer(entry.pair))[: entry.max_answers or 1]
            return [number for n, word in enumerate(words, start=1) for number in (1 / n, *word.span())]
        count = self._options["labels"] if self._task == "classification" else 1
        values = vector(self._options["seed"], text, count + 1)[:count]
        return values if entry.raw_scores else [1 / (1 + math.exp(-value)) for value in values]

    def _vector(self, text: str) -> list[float]:
        return vector(self._options["seed"], text, self._options["dimensions"])

    def _misbehave(self, texts: Sequence[str], fast: bool) -> None:
        options = self._options
        before, self._batches = self._batches, self._batches + 1

        def due(name: str) -> bool:
            return options[name] is not None and before >= options[name]

        if due("crash_after_batches") or (fast and options["fast_crash"]):
            os.kill(os.getpid(), signal.SIGKILL)
        if options["crash_on_text"] and any(options["crash_on_text"] in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("oom_after_batches"):
            raise MemoryError("engine echo was told to run out of memory")
        if due("fail_after_batches"):
            raise RuntimeError("engine echo was told to fail")
        if options["leak_bytes_per_batch"]:
            self._memory.append(_touched(options["leak_bytes_per_batch"]))
        if options["hold_gil_seconds"]:
            # PyDLL, unlike CDLL, calls without releasing the interpreter lock.
            ctypes.PyDLL(None).usleep(int(options["hold_gil_seconds"] * 1e6))
        while due("hang_after_batches"):
            time.sleep(3600)


def in_bf16(value: float) -> float:
    """The nearest number towards zero that bf16 has."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    (rounded,) = struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))
    return float(rounded)


def _touched(size: int) -> mmap.mmap:
    """So much private memory, every page written."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error.strerror}") from error
    for start in range(0, size, mmap.PAGESIZE):
        memory[start] = 1
    return memory
