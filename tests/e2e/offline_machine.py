"""Another machine, without a network: brings itself to a lock, answers, drifts. Run inside a network namespace.

Reads {"data_dir", "mirror", "lock", "model", "text", "vector"} (JSON) from standard input; a broken promise is an
AssertionError, the last line is `done`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from e2e.rig import eventually  # noqa: E402
from modelmora_app.cli import cli  # noqa: E402
from modelmora_registry import lock_yaml, locks  # noqa: E402

from bench.up import Up  # noqa: E402

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
WEIGHTS = "model.safetensors"


def loopback_alone() -> None:
    """Brings loopback up, and makes sure that there is no way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16xH14x", fcntl.ioctl(asked, SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(asked, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.socket() as out:
        assert out.connect_ex(("192.0.2.1", 443)) == errno.ENETUNREACH


def turned(text: str) -> str:
    """The lock with every answer turned round: each number has the other sign."""
    (model,) = lock_yaml.read(text).models
    assert model.fingerprint is not None
    outputs = model.fingerprint.outputs
    data = bytes(byte ^ 0x80 if index % 4 == 3 else byte for index, byte in enumerate(outputs.data))
    other = model.fingerprint.model_copy(update={"outputs": outputs.model_copy(update={"data": data})})
    return locks.render(locks.LockDocument.of([model.model_copy(update={"fingerprint": other})]))


def main() -> None:
    job = json.load(sys.stdin)
    loopback_alone()
    folder = Path(job["data_dir"])
    locked = folder.with_name("models.lock.yaml")
    locked.write_text(job["lock"])
    settings = {"REGISTRY_MODEL_ROOTS": json.dumps([job["mirror"]])}
    with Up(folder, settings=settings) as up:

        def modelmora(*arguments: str, code: int = 0) -> Any:
            told: Result = CliRunner().invoke(
                cli, [*arguments, "--json"], env={"MODELMORA_TARGET": up.target}, prog_name="modelmora"
            )
            assert told.exit_code == code, (arguments, told.exit_code, told.stdout, told.stderr)
            return json.loads(told.stdout or told.stderr)

        def drifts(text: str) -> dict[str, str]:
            edited = folder.with_name("edited.yaml")
            edited.write_text(text)
            code = 0 if text == job["lock"] else 1
            (model,) = modelmora("lock", "verify", str(edited), code=code)["models"]
            return {drift["field"]: drift.get("found", "") for drift in model["drifts"]}

        # 1. Nothing is here; what the lock names comes from the mirror, and every file is what it says.
        (gone,) = modelmora("lock", "verify", str(locked), code=1)["models"]
        assert [drift["field"] for drift in gone["drifts"]] == ["models[0]"]
        applied = modelmora("lock", "apply", str(locked), "--mirror", job["mirror"], "--promote")
        assert [each["outcome"] for each in applied["models"]] == ["imported"]
        assert modelmora("lock", "verify", "--full", str(locked))["intact"]

        # 2. It answers as it did on the other machine, and the registry hears of it.
        (vector,) = modelmora("embed", job["model"], job["text"], "--timeout", "200")["embeddings"]
        assert vector == job["vector"]
        library = 'models[0].engine_profile.library_versions["torch"]'
        older = re.sub(r'( torch: )"[^"]+"', r'\1"1.0.0"', job["lock"])
        assert older != job["lock"]
        try:
            eventually(lambda: _code(up, older, folder) == 1, 60, "the registry hears of libraries and answers")
        except AssertionError:
            print(up.tail(), file=sys.stderr)
            raise
        assert set(drifts(older)) == {library}
        assert drifts(job["lock"]) == {}, "the fingerprint of here is that of there"

        # 3. Answers that the lock does not say are drift.
        assert set(drifts(turned(job["lock"]))) == {"models[0].fingerprint.outputs"}

        # 4. One byte of the weights changes.
        modelmora("unload", job["model"], "--force")
        version = modelmora("models", "show", f"{job['model']}@production")
        weights = Path(version["artifact"]["path"]) / WEIGHTS
        os.chmod(weights, 0o644)
        with weights.open("r+b") as opened:
            opened.seek(-5, os.SEEK_END)
            (byte,) = opened.read(1)
            opened.seek(-5, os.SEEK_END)
            opened.write(bytes([byte ^ 1]))
        found = modelmora("lock", "verify", str(locked), code=1)["models"][0]["drifts"]
        assert [drift["field"] for drift in found] == [f'models[0].files["{WEIGHTS}"].sha256']
        files = modelmora("models", "verify", job["model"], code=1)["files"]
        assert [file["path"] for file in files if file["verdict"] != "intact"] == [WEIGHTS]
        refused = modelmora("load", job["model"], code=4)["error"]
        assert (refused["reason"], refused["metadata"]["file"]) == ("VersionDrifted", WEIGHTS)
        eventually(lambda: WEIGHTS in json.dumps(modelmora("health")), 30, "health tells of the file")
    print("done")


def _code(up: Up, text: str, folder: Path) -> int:
    edited = folder.with_name("edited.yaml")
    edited.write_text(text)
    told = CliRunner().invoke(cli, ["lock", "verify", str(edited)], env={"MODELMORA_TARGET": up.target})
    return told.exit_code


if __name__ == "__main__":
    main()
