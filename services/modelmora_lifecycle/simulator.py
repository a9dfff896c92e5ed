"""A simulation in a process of its own: it computes for seconds, and serving must not share its interpreter with it.

The child reads its rules as a line of JSON and then the request as it came; it answers with the response, or with the
field that is wrong. It dies with us, and is killed when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from modelmora.common.v1 import common_pb2
from modelmora.errors import InternalError, InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora_runtime import exec_child

from modelmora_lifecycle.eviction import Policy
from modelmora_lifecycle.ledger import Vector
from modelmora_lifecycle.prediction import Prediction
from modelmora_lifecycle.scaling import Scaling
from modelmora_lifecycle.scheduler import Rules
from modelmora_lifecycle.simulation import AcquireEvent, simulate

_WRONG = 3
"""Exit status when the request is wrong; which field and why is on standard output."""
_NICE = 10


async def run(
    request: pb.SimulatePlacementRequest, policies: Sequence[str], budget: Vector, rules: Rules
) -> pb.SimulatePlacementResponse:
    """One result a policy. InvalidArgument with the index of a wrong event; who is cancelled takes the child along."""
    order = {"policies": list(policies), "budget": dict(budget), "rules": asdict(rules)}
    stub = [sys.executable, "-I", "-S", exec_child.__file__, str(os.getpid()), str(int(signal.SIGKILL)), "same"]
    process = await asyncio.create_subprocess_exec(
        *stub,
        *(sys.executable, "-P", "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        answer, said = await process.communicate(json.dumps(order).encode() + b"\n" + request.SerializeToString())
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode == _WRONG:
        raise InvalidArgument.at(*json.loads(answer))
    if process.returncode != 0:
        raise InternalError(f"the simulation ended with {process.returncode}: {said.decode(errors='replace')[-1000:]}")
    return pb.SimulatePlacementResponse.FromString(answer)


def main() -> int:
    os.nice(_NICE)
    head, _, body = sys.stdin.buffer.read().partition(b"\n")
    order = json.loads(head)
    rules = _rules(order["rules"])
    events = [read_event(event) for event in pb.SimulatePlacementRequest.FromString(body).events]
    response = pb.SimulatePlacementResponse()
    try:
        for name in order["policies"]:
            result = simulate(events, replace(rules.policy, name=name), order["budget"], rules)
            response.results.append(pb.SimulationResult(**asdict(result)))
    except InvalidArgument as error:
        (wrong,) = error.fields
        sys.stdout.write(json.dumps([wrong.field, wrong.description]))
        return _WRONG
    sys.stdout.buffer.write(response.SerializeToString())
    return 0


def read_event(message: pb.AcquireEvent) -> AcquireEvent:
    memory = {item.device: item.memory_bytes for item in message.memory}
    priority = message.priority or common_pb2.PRIORITY_MEDIUM
    return AcquireEvent(
        message.at_seconds, message.model_version, priority, message.use_seconds, memory, message.load_seconds
    )


def _rules(plain: Mapping[str, Any]) -> Rules:
    parts = {"policy": Policy, "prediction": Prediction, "scaling": Scaling}
    return Rules(**{name: parts[name](**value) if name in parts else value for name, value in plain.items()})


if __name__ == "__main__":
    sys.exit(main())
