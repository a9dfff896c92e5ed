"""What tokenizers make of texts, as rows for the worker's wire."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from modelmora_worker.engines import base


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
