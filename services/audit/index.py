"""The index for review: what the log says, in rows that can be searched.

It is derived. Everything in it stands in the log, and a lost or doubted index is made again from
there (indexer.py). It proves nothing by itself: what it finds is shown with its receipt, and that
nothing else is there is shown only by reading the whole log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol


class Row(NamedTuple):
    """One event. Ids are opaque; `patient` is the keyed pseudonym, or empty.

    `time` is the start of the span in nanoseconds since the epoch. The numbers are 0 where the
    event has none; `break_glass` is 0 or 1; `counted` is how many things a summary stands for;
    `parent_id` is empty for a root span. The columns of a backend have these names and order.
    """

    event_id: bytes
    time: int
    type: str
    outcome: str
    code: str
    reason: str
    actor: str
    actor_kind: str
    session: str
    caller_seq: int
    purpose: str
    break_glass: int
    patient: str
    model: str
    model_version: str
    organization: str
    target: str
    producer: str
    producer_seq: int
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    instance: str
    counted: int
    data_category: str


class IndexFailedError(Exception):
    """The index cannot be read or written. Carries no data."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows to list. None, False and 0 do not restrict; times in nanoseconds.

    `until` and `before_index` are exclusive. `type` is a whole event type, or the part before `.*`
    with its dot. `oldest_first` turns the order; then `after_index` (exclusive) pages on.
    """

    user: str | None = None
    patient: str | None = None
    model: str | None = None
    outcome: str | None = None
    type: str | None = None
    purpose: str | None = None
    reason: str | None = None
    session: str | None = None
    producer: str | None = None
    instance: str | None = None
    trace_id: bytes | None = None
    break_glass: bool = False
    since: int = 0
    until: int = 0
    before_index: int = 0
    after_index: int = -1
    oldest_first: bool = False
    limit: int = 100


class Index(Protocol):
    """The rows of one log. One thread writes; reads may come from any.

    All methods raise IndexFailedError.
    """

    @property
    def size(self) -> int:
        """The number of entries that are indexed: of [0, size) every event has its row."""

    def add(self, first: int, rows: Sequence[Row | None]) -> None:
        """Add what entries [first, first + n) are about, None for an entry that is no event.

        `first` is `size`.
        """

    def rows(self, query: Query) -> list[tuple[int, Row]]:
        """Return (log index, row), newest first unless the query says otherwise."""

    def row(self, index: int) -> Row | None:
        """Return the row of one entry; None when it is no event."""

    def clear(self) -> None:
        """Forget every row."""

    def digest(self) -> bytes:
        """Return the TableDigest of all rows, 32 bytes."""

    def maintain(self) -> None:
        """Do what the backend needs now and then."""

    def close(self) -> None:
        """Release everything."""


class TableDigest:
    """SHA-256 over rows in the order of the log: the same for every backend and every rebuild."""

    def __init__(self) -> None:
        self._hash = sha256(b"sealward/audit-index/v4\n")

    def add(self, index: int, row: Row) -> None:
        """Add one row; each field with its length, so that none can run into the next."""
        fields = [b"%d" % index]
        for value in row:
            if isinstance(value, bytes):
                fields.append(value)
            else:
                fields.append(str(value).encode())
        self._hash.update(b"".join(len(f).to_bytes(4, "big") + f for f in fields))

    def value(self) -> bytes:
        """Return the digest, 32 bytes."""
        return self._hash.digest()
