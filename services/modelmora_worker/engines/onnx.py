"""An encoder by ONNX Runtime, in fp32. Importing the library starts a thread, so no fork server may do that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelmora_worker.engines import conversions


class Encoder:
    """Arrays of int64 [rows, tokens], in the order of the inputs → float32 [rows, tokens, size]."""

    def __init__(self, conversion: Path, precision: str, threads: int) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait do not spin: others want the cores too.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Plans and pools are by shape, and shapes hardly repeat.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(conversion / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = conversions.inputs_of(conversion)

    def __call__(self, arrays: Sequence[Any]) -> Any:
        return self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))[0]
