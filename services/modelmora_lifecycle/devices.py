"""Memory of the accelerators, by device and process. NVML is used where it loads, and never required."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Bytes of one device, now."""

    total_bytes: int
    used_bytes: int
    used_by: Mapping[int, int] = field(default_factory=dict)
    """By process id, as far as the driver tells."""


class Accelerators:
    """Reads them; NVML stays open between reads. Blocks for milliseconds: in a thread, one at a time."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._absent = False

    def read(self) -> dict[str, Accelerator]:
        """By name (`cuda:0`); empty where there are none, or NVML does not answer now."""
        if self._absent:
            return {}
        try:
            import pynvml
        except ImportError:
            self._absent = True
            return {}
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            return {f"cuda:{index}": _read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())}
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            self._absent = True  # no NVIDIA driver on this machine: nothing is wrong
        except pynvml.NVMLError:
            self._nvml = None  # opened anew at the next read
        return {}


def _read(nvml: Any, index: int) -> Accelerator:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    # In a container the driver may know the numbers of another namespace, or no figures: then nobody is named.
    used_by = {int(process.pid): int(process.usedGpuMemory or 0) for process in processes}
    return Accelerator(int(memory.total), int(memory.used), used_by)
