"""What an engine may answer, whoever wrote it: figures of a load, batches made ready, rows. Here alone they are looked
at; what cannot be goes no further."""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base

_MOST_TRACKS: Final = 1024
_LIMITS: Final = ("max_input_tokens", "embedding_dimensions", "max_batch_tokens", "max_batch_entries")
_IMAGE_LIMITS: Final = ("max_image_bytes", "max_image_pixels", "max_resized_pixels")


def check_load(engine: base.Engine, told: object, *, embeds: bool) -> base.Footprint:
    """The footprint, if it can be one. Raises NonsenseFootprint."""
    wrong = nonsense(told, embeds=embeds)
    for name, least, most in (("tracks", 1, _MOST_TRACKS), ("token_dimensions", 0, 2**31 - 1)):
        if not wrong and not _is_within(value := getattr(engine, name, least), least, most):
            wrong = f"{name} {reprlib.repr(value)}"
    if wrong or not isinstance(told, base.Footprint):
        raise errors.NonsenseFootprint(f"the engine tells of {wrong}; mend the engine: it is not tried again by itself")
    return told


def nonsense(told: object, *, embeds: bool = False) -> str:
    """Why what a load has told cannot be, as far as that shows without knowing the machine; empty: it can."""
    if not isinstance(told, base.Footprint):
        return f"{reprlib.repr(told)} instead of a Footprint"
    if not isinstance(told.memory_bytes, Mapping):
        return f"memory_bytes {reprlib.repr(told.memory_bytes)}, which are not bytes by device"
    for device, memory_bytes in told.memory_bytes.items():
        if not (_is_text(device) and device):
            return f"{reprlib.repr(memory_bytes)} bytes on a device without a name ({reprlib.repr(device)})"
        if not _is_within(memory_bytes, 0, 2**63 - 1):
            return f"{reprlib.repr(memory_bytes)} bytes on {device}"
    for name in (*_LIMITS, *_IMAGE_LIMITS):
        if not _is_within(value := getattr(told, name), 0, 2**31 - 1 if name in _LIMITS else 2**63 - 1):
            return f"{name} {reprlib.repr(value)}"
    if embeds and not told.embedding_dimensions:
        return "embedding_dimensions 0, though it embeds"
    if not _is_profile(told.profile):
        return f"the profile {reprlib.repr(told.profile)}"
    for name, texts in (("labels", told.labels), ("default_prompt", [told.default_prompt])):
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(map(_is_text, texts)):
            return f"{name} {reprlib.repr(texts)}"
    return "" if _is_texts(told.prompts) else f"prompts {reprlib.repr(told.prompts)}"


def check_prepared(prepared: object, count: int, left_out: Sequence[int] = ()) -> base.Prepared:
    """Every row once, in a micro-batch, failed or left out. Raises InternalError."""
    if not isinstance(prepared, base.Prepared):
        raise _not(prepared, "Prepared")
    rows = [*left_out, *(position for position, _ in prepared.failed)]
    for batch in prepared.micro_batches:
        rows += batch.positions
        if not len(batch.positions) == len(batch.input_tokens) == len(batch.truncated) == len(batch.items):
            raise errors.InternalError("the engine has prepared a micro-batch whose lists differ in length")
        if min(batch.input_tokens, default=0) < 0:
            raise errors.InternalError(f"the engine counts {reprlib.repr(batch.input_tokens)} tokens")
    if sorted(rows) != list(range(count)):
        raise errors.InternalError(f"of {count} rows the engine has prepared {reprlib.repr(rows)}")
    _check_failed(prepared.failed)
    return prepared


def check_rows(rows: object, positions: Sequence[int], lengths: Sequence[int] = ()) -> base.Rows:
    """The rows of a micro-batch; those that cannot be right have failed, each alone. `lengths`: what each has to have;
    empty: nobody knows. Raises InternalError where they cannot be told apart. All being well this is one pass over the
    numbers: 6 µs for 32 rows of 384."""
    if not isinstance(rows, base.Rows):
        raise _not(rows, "Rows")
    there = rows.dimensions
    if len(there) != len(positions) or 4 * sum(there) != len(rows.data) or min(there, default=0) < 0:
        raise errors.InternalError(
            f"the engine answered {len(positions)} texts with rows of {reprlib.repr(there)} numbers, "
            f"in {len(rows.data)} bytes"
        )
    if not rows.failed and (not lengths or there == lengths) and _all_finite(rows.data):
        return rows
    _check_failed(rows.failed)
    failed = {position for position, _ in rows.failed}
    if not failed <= set(positions):
        raise errors.InternalError(f"the engine failed the rows {reprlib.repr(failed)}, of which not all were asked")
    kept, at = [], 0
    made = base.Rows(b"", [], list(rows.failed), rows.profile)
    for index, (position, length) in enumerate(zip(positions, there, strict=True)):
        row = rows.data[at : at + 4 * length]
        at += 4 * length
        wrong = ""
        if lengths and length != lengths[index]:
            wrong = f"{length} numbers, not {lengths[index]}"
        elif not _all_finite(row):
            wrong = f"{length} numbers, of which not all are finite"
        if wrong and position not in failed:
            made.failed.append((position, errors.InternalError(f"the engine answered with nonsense: {wrong}")))
        fine = not wrong and position not in failed
        kept.append(row if fine else b"")
        made.dimensions.append(length if fine else 0)
    made.data = b"".join(kept)
    return made


def text_of(value: object) -> str:
    """A text that the wire takes, of one that an engine may have made."""
    return str(value).encode("utf-8", "replace").decode()


def _check_failed(failed: Sequence[tuple[int, errors.ModelMoraError]]) -> None:
    for _, error in failed:
        if not isinstance(error, errors.ModelMoraError):
            raise errors.InternalError(f"the engine failed a row with {reprlib.repr(error)} instead of a named error")


def _all_finite(data: bytes) -> bool:
    """Of little-endian float32. Whoever makes many has numpy; a worker that has not does not import it for this."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        return bool(numpy.isfinite(numpy.frombuffer(data, "<f4")).all())
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return math.isfinite(sum(values))  # float32 summed up as double: finite numbers never overflow


def _not(answer: object, wanted: str) -> errors.InternalError:
    return errors.InternalError(f"the engine answered {reprlib.repr(answer)} instead of {wanted}")


def _is_within(value: Any, least: int, most: int) -> bool:
    """A whole number, of numpy too, in these bounds."""
    try:
        return not isinstance(value, bool) and least <= operator.index(value) <= most
    except TypeError:
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and text_of(value) == value


def _is_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text(text) for pair in value.items() for text in pair)


def _is_profile(value: object) -> bool:
    return (
        isinstance(value, base.Profile)
        and all(map(_is_text, (value.backend, value.precision, value.batch_rule)))
        and _is_texts(value.library_versions)
    )
