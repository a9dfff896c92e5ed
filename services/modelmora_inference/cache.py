"""What was computed before, by the same thing for the same input: least recently used, bounded in bytes.

A key is a hash of 256 bits over everything that decides a row: the version (name, digest, and what the registry says of
its engine), the profile that computed it, the task, its options and the input; see reuse.py. It holds the tenant too:
a row would be right for everybody, but that it is there tells, by `usage.cached_inputs` and by the clock, that somebody
has asked the same. Tenants share the bytes, not the rows. Pure; every operation costs O(1).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

ROW_OVERHEAD_BYTES = 400
"""What a row costs in memory beside its content: key, entry of the table, numbers."""
MAX_MAKERS = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one input, as the worker gave it."""

    data: bytes
    input_tokens: int
    truncated: bool

    @property
    def size_bytes(self) -> int:
        return len(self.data) + ROW_OVERHEAD_BYTES


class ResponseCache:
    """Rows by key. `max_bytes` bounds them together; one that is larger is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._makers: OrderedDict[tuple[str, bool], object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Row | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: Row) -> None:
        if row.size_bytes > self.max_bytes:
            return
        old = self._rows.pop(key, None)
        if old is not None:
            self.held_bytes -= old.size_bytes
        self._rows[key] = row
        self.held_bytes += row.size_bytes
        while self.held_bytes > self.max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self.held_bytes -= oldest.size_bytes

    def maker(self, version: str, exact: bool) -> object | None:
        """What computed the last rows of a version, if any were kept."""
        return self._makers.get((version, exact))

    def made_by(self, version: str, exact: bool, maker: object) -> None:
        self._makers[version, exact] = maker
        self._makers.move_to_end((version, exact))
        if len(self._makers) > MAX_MAKERS:
            self._makers.popitem(last=False)
