"""An encoder by OpenVINO, in fp32 or bf16: compiled once for the processor, then read back from what was compiled.

The library reports each import to its makers, unless the package that does so is not to be had; so it never is, here.
Weights stay in the conversion's file, mapped; only what the processor wants in another layout is copied. Kernels are
kept for so many shapes as single texts have (32, of some ten kernels each): those of several texts hardly repeat.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from modelmora_worker.engines import conversions

_KERNELS_KEPT: Final = 512
"""With 64 a text alone took 4 % longer; with 5,000 it is no faster. Either costs a few MiB."""


def preload() -> None:
    """For a fork server: the library, where it is installed. Nothing is computed, no thread is started."""
    try:
        _library()
    except ModuleNotFoundError:
        return
    for name in ("torch", "transformers", "sentence-transformers", "openvino"):
        conversions.known_version(name)


def write(encoder: Any, example: tuple[Any, ...], inputs: Sequence[str], path: Path) -> None:
    """Writes a torch module as `path` and the weights beside it."""
    library = _library()
    model = library.convert_model(encoder, example_input=example)
    for place, name in zip(model.inputs, inputs, strict=True):
        place.set_names({name})
    library.save_model(model, str(path), compress_to_fp16=False)


class Encoder:
    """Arrays of int64 [rows, tokens], in the order of the inputs → float32 [rows, tokens, size], valid until the next
    call, or the next on the same track."""

    def __init__(self, conversion: Path, precision: str, threads: int) -> None:
        self._conversion, self._precision, self._threads = conversion, precision, threads
        self._core = _library().Core()
        (self._request,) = self._open(1)
        self._tracks: list[Any] = []

    def open_tracks(self, count: int) -> None:
        """For as many threads at a time, each with its part of the processor. The library lays the weights out once
        more for them."""
        self._tracks = self._open(count)

    def __call__(self, arrays: Sequence[Any], track: int | None = None) -> Any:
        request = self._request if track is None else self._tracks[track]
        request.infer(list(arrays), share_inputs=True)
        return request.get_output_tensor(0).data

    def _open(self, tracks: int) -> list[Any]:
        """A request for each track."""
        import numpy

        conversion, precision, core = self._conversion, self._precision, self._core
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": tracks,
            "INFERENCE_NUM_THREADS": self._threads,
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS_KEPT,
            "CACHE_MODE": "OPTIMIZE_SIZE",  # what is kept of a compiled model leaves the weights where they are
        }
        name = f"{precision}-{_processor(core)}.compiled"
        compiled = None
        if (content := conversions.kept(conversion / name)) is not None:
            try:
                weights = {"WEIGHTS_PATH": str(conversion / "model.bin")}
                compiled = core.import_model(content, "CPU", {**settings, **weights})
            except RuntimeError:
                pass  # by a library that was built otherwise
        if compiled is None:
            compiled = core.compile_model(str(conversion / "model.xml"), "CPU", settings)
            stream = io.BytesIO()
            compiled.export_model(stream)
            conversions.keep(conversion / name, stream.getvalue())
        requests = [compiled.create_infer_request() for _ in range(tracks)]
        for request in requests:  # the first pass lays the weights out
            request.start_async([numpy.ones((1, 8), dtype=numpy.int64)] * len(compiled.inputs))
        for request in requests:
            request.wait()
        return requests


def _processor(core: Any) -> str:
    """What a compiled model depends on beside the model."""
    facts = [_library().__version__, core.get_property("CPU", "FULL_DEVICE_NAME")]
    facts += sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _library() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
