"""What linear layers in bf16 keep of the shapes that they have seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from modelmora_worker.engines.base import TABLE

torch = pytest.importorskip("torch")

PROGRAM = """
import torch
from modelmora_worker.engines.packed import _linear

torch.set_num_threads(1)
layer = _linear(torch.zeros(1536, 384), torch.zeros(1536), gelu=True)


def dirty():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def compute(tokens):
    with torch.inference_mode():
        for count in tokens:
            layer(torch.zeros(1, count, 384))


compute(range(400, 450))
before = dirty()
compute(range(100, 400))
print(dirty() - before)
"""


@pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor computes no bf16 in oneDNN",
)
def test_shapes_that_were_seen_before_cost_no_memory() -> None:
    environment = {**os.environ, **TABLE["sentence_transformers"].environment}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 20 * 1024
