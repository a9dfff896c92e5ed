"""What tokenizers make of texts, as rows for the worker's wire."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from modelmora_worker.engines import base


def encode(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, limits: Sequence[int]
) -> list[tuple[dict[str, Any], int]]:
    """For a model: the tokens of each text or pair, without padding, and how many there are of all of it; of more than
    `limits[n]`, where that is not 0, so many.

    The library would do the same with `longest_first`, but it also makes everything that it cuts off, in pieces; of a
    pair one for every piece of the one with every piece of the other: gigabytes for two texts of 30,000 letters."""

    def called(texts: Sequence[str], pairs: Sequence[str] | None, **how: Any) -> Any:
        return tokenizer(texts, pairs, padding=False, return_attention_mask=False, verbose=False, **how)

    found = called(texts, pairs, truncation=False)
    right = getattr(tokenizer, "is_fast", False) and tokenizer.truncation_side == "right"
    rows = []
    for n, values in enumerate(zip(*found.values(), strict=True)):
        row = dict(zip(found, values, strict=True))
        count, limit = len(row["input_ids"]), limits[n]
        if limit and count > limit:
            parts = found.encodings[n].sequence_ids if right else []
            if right and parts.count(None) < limit:
                kept = _kept(parts, limit)
                row = {name: [numbers[at] for at in kept] for name, numbers in row.items()}
            else:
                row = dict(called(texts[n], pairs[n] if pairs else None, truncation="longest_first", max_length=limit))
        rows.append((row, count))
    return rows


def _kept(parts: Sequence[int | None], limit: int) -> list[int]:
    """Which tokens stay of those of a first and a second text and of neither, None: of both texts their beginnings, of
    like lengths unless one of them is shorter."""
    first, second = parts.count(0), parts.count(1)
    room = limit - (len(parts) - first - second)
    if not second:
        left = [room, 0]
    elif first <= second:
        left = [min(first, room // 2), 0]
        left[1] = room - left[0]
    else:
        left = [0, min(second, room // 2)]
        left[0] = room - left[1]
    kept = []
    for at, part in enumerate(parts):
        if part is None:
            kept.append(at)
        elif left[part]:
            left[part] -= 1
            kept.append(at)
    return kept


def row_of(tokens: Sequence[tuple[int, int, int, bool]]) -> bytes:
    """(id, start, end, special) of each token as little-endian int32."""
    return struct.pack(f"<{4 * len(tokens)}i", *(int(number) for token in tokens for number in token))


def rows_of(tokenizer: Any, texts: Sequence[base.Text]) -> list[bytes]:
    """A row for each text, whole, by a fast tokenizer of transformers or one of the library below it."""
    rows = [b""] * len(texts)
    for plain in (False, True):
        chosen = [n for n, entry in enumerate(texts) if entry.plain is plain]
        if not chosen:
            continue
        words = [texts[n].text for n in chosen]
        if hasattr(tokenizer, "encode_batch"):
            found = tokenizer.encode_batch(words, add_special_tokens=not plain)
        else:
            found = tokenizer(
                words, add_special_tokens=not plain, truncation=False, padding=False, verbose=False
            ).encodings
        for n, one in zip(chosen, found, strict=True):
            rows[n] = row_of(
                [
                    (number, *offsets, bool(special))
                    for number, offsets, special in zip(one.ids, one.offsets, one.special_tokens_mask, strict=True)
                ]
            )
    return rows


def texts_of(tokenizer: Any, entries: Sequence[Any]) -> list[bytes]:
    """The text of each entry's `token_ids`, in code points, by such a tokenizer; ids it does not know are left out."""
    library = tokenizer if hasattr(tokenizer, "encode_batch") else tokenizer.backend_tokenizer
    return [
        library.decode(list(entry.token_ids), skip_special_tokens=entry.plain).encode("utf-32-le") for entry in entries
    ]
