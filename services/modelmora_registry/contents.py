"""What the bytes of a file tell: code in disguise, a pointer instead of the file, weights that are cut off. Reads heads
of files, no more: a safetensors header says where its last tensor ends, and that is where the file must end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from modelmora.errors import InvalidModelFiles, UnsafeFile

from modelmora_registry import metadata

POINTER = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
MAX_HEADER_BYTES = 100_000_000
"""As in the format's own reader."""
MAX_SIDES = 64
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}


def check(file: Path, path: str, *, allow_pickle: bool) -> None:
    """Looks at the file that is to be called `path`. Raises UnsafeFile, InvalidModelFiles."""
    with open(file, "rb") as opened:
        size_bytes = file.stat().st_size
        head = opened.read(MAX_POINTER_BYTES)
        if head.startswith(POINTER) and size_bytes <= MAX_POINTER_BYTES:
            _refuse(path, "is a pointer of git LFS, not the file; fetch it with `git lfs pull`")
        if not allow_pickle and metadata.looks_like_pickle(path, head[:8]):
            raise UnsafeFile(f"{path!r} is a pickle or a zip, whatever its name says", file=path)
        if path.endswith(".safetensors"):
            opened.seek(0)
            safetensors_header(opened, size_bytes, path)


def safetensors_header(opened: BinaryIO, size_bytes: int, path: str) -> dict[str, Any]:
    """The header of a safetensors file, its tensors by name (and `__metadata__`). Raises InvalidModelFiles when it is
    none, or when the tensors do not end where the file does."""
    begin = opened.read(8)
    header_bytes = int.from_bytes(begin, "little")
    if len(begin) < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
        _refuse(path, "is no safetensors file, or is cut off in its header")
    try:
        header = json.loads(opened.read(header_bytes))
        places = sorted(_place(entry) for name, entry in header.items() if name != "__metadata__")
        ends = [end for _, end in places]
        if any(begin != end for (begin, _), end in zip(places, [0, *ends], strict=False)):
            raise ValueError("tensors with holes between them, or over each other")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        _refuse(path, "has a header that is none of safetensors")
    if (found := size_bytes - 8 - header_bytes) != (wanted := max(ends, default=0)):
        _refuse(path, f"has {found} bytes of weights, its header names {wanted}")
    assert isinstance(header, dict)
    return header


def _place(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where a tensor begins and ends. Raises ValueError when shape, type and place do not agree."""
    begin, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    # A long list of large sides would take for ever to multiply.
    sides_fit = len(shape) <= MAX_SIDES
    if not sides_fit or any(type(number) is not int or number < 0 for number in (begin, end, *shape)) or end < begin:
        raise ValueError("no place of a tensor")
    if (bits := DTYPE_BITS.get(dtype)) is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise ValueError("a tensor of another size")
    return int(begin), int(end)


def _refuse(path: str, problem: str) -> Any:
    raise InvalidModelFiles(f"{path} {problem}", file=path)
