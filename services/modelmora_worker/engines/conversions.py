"""Encoders written out for other libraries than torch, and the folder that keeps what was written.

    <cache_path>/<key>/       one conversion: `manifest.json` with the digest and size of each file, written last
    <cache_path>/.<name>.…    one being written; a rename makes it valid, whole or not at all

The key is over everything that a conversion depends on: the model's files, the libraries and their versions, and how
it is done here. So nothing is ever changed in place, workers need not wait for each other (who comes second throws its
own away), and what no release asks for any more only lies there until lifecycle, whose folder it is, removes it.

Writing takes seconds and several times the memory of the model, so it is done by a process of its own: this file as a
program. It ends with its worker.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

_ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__" and (_ROOT / "WORKER_BUNDLE").is_file():
    sys.path.insert(0, str(_ROOT))

from modelmora.errors import LoadFailed, ProfileNotSupported, StorageFull  # noqa: E402

FORMAT: Final = 1
"""Of what lies in a conversion; another one is another key."""
MOST_SECONDS: Final = 1800.0
_TOLD_SECONDS = 0.5
_LIBRARIES: Final = {
    "openvino": ("torch", "transformers", "sentence-transformers", "openvino"),
    "onnx": ("torch", "transformers", "sentence-transformers", "onnx"),
}
_PR_SET_PDEATHSIG = 1
_NO_SPACE = 28


def converted(backend: str, folder: Path, cache_path: str, progress: Callable[[], None]) -> tuple[Path, bool]:
    """Where the model of `folder` lies for a backend (`openvino`: model.xml, model.bin; `onnx`: model.onnx), written
    now unless it was before; and whether it is to be removed after the load, for there is no cache. `progress` is
    called now and then while it is written. Raises ProfileNotSupported, StorageFull, LoadFailed."""
    if not cache_path:
        return _write(backend, folder, Path(tempfile.mkdtemp(prefix="modelmora-conversion-")), progress), True
    cache = Path(cache_path)
    target = cache / key(backend, folder)
    if (there := found(backend, folder, cache_path)) is None:
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=cache))
        except OSError as error:
            raise _storage_error(error) from error
        try:
            _write(backend, folder, made, progress)
            if target.exists() and not is_whole(target):
                shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
        except OSError as error:
            if not is_whole(target):  # else another worker was faster
                raise _storage_error(error) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return there or target, False


def found(backend: str, folder: Path, cache_path: str) -> Path | None:
    """Where `converted` would find it without writing it; None: nowhere."""
    target = Path(cache_path) / key(backend, folder)
    if not cache_path or not is_whole(target):
        return None
    try:
        os.utime(target / "manifest.json")  # what is used last goes last
    except OSError:
        pass
    return target


def key(backend: str, folder: Path) -> str:
    """Names a conversion of this folder with the libraries that are here."""
    facts = [str(FORMAT), backend, *(f"{name} {known_version(name)}" for name in _LIBRARIES[backend])]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found = path.stat()
            facts.append(f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}")
    return f"{backend}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:24]}"


@functools.cache
def known_version(library: str) -> str:
    return version(library)


def is_whole(conversion: Path) -> bool:
    """Whether its files are as its manifest tells. Contents are compared where that costs nothing, up to a megabyte;
    what has become of the weights, the trial at each load shows."""
    try:
        files = json.loads((conversion / "manifest.json").read_text())["files"]
        for name, (size, digest) in files.items():
            path = conversion / name
            if path.stat().st_size != size or (size <= 1 << 20 and _digest(path) != digest):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def inputs_of(conversion: Path) -> list[str]:
    """The names of the tensors that it takes, in order."""
    found: list[str] = json.loads((conversion / "manifest.json").read_text())["inputs"]
    return found


def keep(path: Path, content: bytes) -> None:
    """Adds a small file to a conversion, with its digest before it. That this fails harms nobody."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(hashlib.sha256(content).digest() + content)
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)


def kept(path: Path) -> bytes | None:
    """What `keep` has added; None when it is not there or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def write(backend: str, model: Any, folder: Path) -> list[str]:
    """Writes the encoder that a SentenceTransformer in fp32 begins with into an empty folder, in this very process
    (`converted` has another do it). Returns the names of its inputs. Raises ProfileNotSupported, or what the
    libraries raise."""
    import torch

    first = model[0]
    if type(first).__name__ != "Transformer" or first.modality_config["text"]["method"] != "forward":
        raise ProfileNotSupported(f"a pipeline that begins with {type(first).__name__} has no encoder to write out")
    words = ["the queue of a model holds what nobody has computed yet", "short"]
    sample = model.tokenizer(words, padding=True, return_tensors="pt")
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in sample]

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = first.model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(inputs, tensors, strict=True)), return_dict=True).last_hidden_state

    encoder, example = Encoder().eval(), tuple(sample[name] for name in inputs)
    with torch.no_grad():
        if backend == "onnx":
            # The exporter that traces: the other one wants a further library, and gains nothing here.
            torch.onnx.export(
                encoder,
                example,
                str(folder / "model.onnx"),
                input_names=inputs,
                output_names=["token_embeddings"],
                dynamic_axes={name: {0: "rows", 1: "tokens"} for name in (*inputs, "token_embeddings")},
                opset_version=17,
                dynamo=False,
            )
        else:
            from modelmora_worker.engines import openvino

            openvino.write(encoder, example, inputs, folder / "model.xml")
    return inputs


def _write(backend: str, folder: Path, target: Path, progress: Callable[[], None]) -> Path:
    """Has another process write into `target`. Raises ProfileNotSupported, LoadFailed, StorageFull."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), backend, str(folder), str(target)]
    until = time.monotonic() + MOST_SECONDS
    with tempfile.TemporaryFile(mode="w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/")
        try:
            while time.monotonic() < until:
                progress()
                try:
                    process.wait(_TOLD_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
        if is_whole(target):
            return target
        said.seek(0)
        last = (said.read().strip().splitlines() or [f"status {process.returncode}"])[-1]
    if f"Errno {_NO_SPACE}]" in last:
        raise StorageFull(f"the model cannot be written for {backend}: {last}")
    if process.returncode < 0:
        raise LoadFailed(f"writing the model for {backend} was ended by signal {-process.returncode}")
    raise ProfileNotSupported(f"the model cannot be written for {backend}: {last}"[:1000])


def finish(folder: Path, source: str, inputs: Sequence[str]) -> None:
    """Writes the manifest of what was written of the model in the folder `source`: it is whole from now on."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = [path.stat().st_size, _digest(path)]
    facts: Mapping[str, object] = {"format": FORMAT, "source": source, "inputs": inputs, "files": files}
    with (folder / "manifest.json").open("w") as file:
        file.write(json.dumps(facts, indent=1))
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storage_error(error: OSError) -> Exception:
    if error.errno == _NO_SPACE:
        return StorageFull(f"the model cannot be written for another library: {error}")
    return LoadFailed(f"the model cannot be written for another library: {error}")


def main(backend: str, folder: str, target: str) -> None:
    """One conversion, then the end. What goes wrong is the last line of the traceback, and of the output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.nice(5)
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(
        folder,
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )
    finish(Path(target), folder, write(backend, model.float().eval(), Path(target)))


if __name__ == "__main__":
    main(*sys.argv[1:])
