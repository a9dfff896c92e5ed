"""`modelmora up` as a process of its own: started, waited for, called, ended. For the bench and the e2e tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora.observability.v1 import observability_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc

from bench.waits import eventually

READY_SECONDS = 120.0


class Up:
    """One platform on one data folder, on ports of its own choice. A context manager that stops it in the end."""

    def __init__(
        self,
        data_dir: Path,
        *,
        command: Sequence[str] = ("-m", "modelmora_app", "up"),
        settings: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`command` are the interpreter's arguments. `settings` are environment variables without their prefix:
        `{"LIFECYCLE_MEMORY_BUDGET_BYTES": "1000"}`.
        """
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.command = tuple(command)
        self.settings = dict(settings or {})
        self.cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None
        self.target = ""
        self.metrics = ""
        self._channel: grpc.Channel | None = None

    def start(self) -> Up:
        """Starts the process and returns when it serves. RuntimeError with its last lines when it does not."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.process and self.process.kill()
            raise
        return self

    def launch(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELMORA_")}
        environ |= {"MODELMORA_DATA_DIR": str(self.data_dir), "MODELMORA_PORT": "0", "MODELMORA_METRICS_PORT": "0"}
        environ |= {f"MODELMORA_{key}": value for key, value in self.settings.items()}
        with self.log.open("ab") as log:
            self._logged_before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-P", *self.command],
                env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.cwd,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Waits until this very process says that it serves."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while not (found := self._endpoint()):
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > until:
                raise RuntimeError(f"not ready after {seconds} s:\n{self.tail()}")
            time.sleep(0.02)
        self.target, self.metrics = found
        self._channel = None

    def _endpoint(self) -> tuple[str, str] | None:
        """Where it serves and where its metrics are: from its endpoint file or, started in parts, from what it said."""
        try:
            found = json.loads((self.data_dir / "run" / "endpoint.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            said = self.log.read_bytes()[self._logged_before :].decode(errors="replace")
            line = re.search(r"serves .* on (\S+) after .*; metrics on (\S+)", said)
            return (line[1], line[2]) if line and "up" not in self.command else None
        return (found["target"], found["metrics"]) if found["pid"] == self.pid else None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def channel(self) -> grpc.Channel:
        """A plain channel to it; raises nothing of ours, so that tests see the status on the wire."""
        if self._channel is None:
            size = 128 * 1024 * 1024
            self._channel = grpc.insecure_channel(
                self.target,
                options=[
                    ("grpc.max_receive_message_length", size),
                    ("grpc.max_send_message_length", size),
                    ("grpc.use_local_subchannel_pool", 1),
                ],
            )
        return self._channel

    @property
    def registry(self) -> registry_pb2_grpc.RegistryServiceStub:
        return registry_pb2_grpc.RegistryServiceStub(self.channel)

    @property
    def lifecycle(self) -> lifecycle_pb2_grpc.LifecycleServiceStub:
        return lifecycle_pb2_grpc.LifecycleServiceStub(self.channel)

    @property
    def leases(self) -> lifecycle_pb2_grpc.LifecycleLeaseServiceStub:
        return lifecycle_pb2_grpc.LifecycleLeaseServiceStub(self.channel)

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def observability(self) -> observability_pb2_grpc.ObservabilityServiceStub:
        return observability_pb2_grpc.ObservabilityServiceStub(self.channel)

    def scrape(self) -> dict[str, float]:
        """Every sample of /metrics: `name{labels}` to its value."""
        url = self.metrics if self.metrics.startswith("http") else f"http://{self.metrics}"
        url = url if url.endswith("/metrics") else f"{url}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own loopback address
            text = answer.read().decode()
        rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def add_model(
        self,
        model_id: str,
        *,
        engine: str,
        folder: Path | None = None,
        options: Mapping[str, Any] | None = None,
        memory_bytes: int = 0,
        version: str = "v1.0.0",
        seconds: float = 60.0,
    ) -> str:
        """Imports a model and waits until its version is READY. Returns the version's resource name."""
        request = registry_pb2.ImportModelRequest(model_id=model_id, version=version, engine=engine)
        if folder is None:
            request.source.empty.SetInParent()
        else:
            request.source.local.path = str(folder)
        if options:
            request.engine_options.update(dict(options))
        if memory_bytes:
            request.resource_requirements.memory_bytes = memory_bytes
        if engine == "echo":
            request.task_type = common_pb2.TASK_TYPE_TXT2EMBED
        request.request_id = str(uuid.uuid4())

        def imported() -> str:
            try:
                return str(self.registry.ImportModel(request, timeout=30).model_version.name)
            except grpc.RpcError as error:  # where much else wants the processors, the database may be slow to answer
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                    raise
                return ""

        name = eventually(imported, seconds, "the registry takes the model in")
        watch = self.registry.WatchModelVersion(registry_pb2.WatchModelVersionRequest(name=name), timeout=seconds)
        for event in watch:
            state = event.model_version.state
            if state == registry_pb2.MODEL_VERSION_STATE_READY:
                watch.cancel()
                return name
            if state == registry_pb2.MODEL_VERSION_STATE_FAILED:
                raise RuntimeError(f"import of {model_id} failed: {event.model_version.failure}")
        raise RuntimeError(f"the watch of {name} ended before it was READY")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 40.0) -> int:
        """Waits for the host process to end; returns its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM, then waits. Killed if it does not stop in time (and the TimeoutExpired is raised)."""
        self.close_channel()
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise

    def close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Up:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
