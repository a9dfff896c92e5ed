"""Main memory and accelerators of this machine as they are now. NVML is used where it loads, and never required."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmora_runtime import machine


@dataclass(frozen=True, slots=True)
class Device:
    """`host` or `cuda:0`; bytes."""

    id: str
    kind: str
    total_bytes: int
    free_bytes: int
    display_name: str | None = None
    compute_capability: str | None = None
    driver_version: str | None = None

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True)
class Devices:
    """What was found; `failure` says why accelerators that are there could not be read."""

    devices: tuple[Device, ...]
    failure: str = ""


class DeviceReader:
    """Reads the devices; NVML stays open between reads. Blocks for milliseconds: call it in a thread, one at a time."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._absent = False

    def read(self) -> Devices:
        host = _host()
        if self._absent:
            return Devices((host,))
        try:
            import pynvml
        except ImportError:
            self._absent = True
            return Devices((host,))
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            return Devices((host, *self._accelerators(pynvml)))
        except pynvml.NVMLError as error:
            self._nvml = None
            if isinstance(error, pynvml.NVMLError_LibraryNotFound | pynvml.NVMLError_DriverNotLoaded):
                self._absent = True  # no NVIDIA driver on this machine: nothing is wrong
                return Devices((host,))
            return Devices((host,), f"NVML: {error}")

    def _accelerators(self, nvml: Any) -> list[Device]:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(nvml.nvmlDeviceGetName(handle))
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                total, free = int(memory.total), int(memory.free)
            except nvml.NVMLError_NotSupported:  # a slice of a shared GPU may not tell
                total = free = 0
            try:
                major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
                capability: str | None = f"{major}.{minor}"
            except nvml.NVMLError_NotSupported:
                capability = None
            found.append(Device(f"cuda:{index}", "cuda", total, free, name, capability, driver))
        return found

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


def _host() -> Device:
    total = machine.total_bytes()
    return Device("host", "host", total, min(total, machine.available_bytes()), processor_name())


def processor_name() -> str | None:
    """Marketing name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def cpu_count() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
