"""Keeps an index up with its log, from a thread of its own: no append waits for it.

What was just committed is handed over in memory. What the index lacks after a crash, or when it
fell too far behind, is read and opened from the log again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import EVENT_ID_SIZE, PREFIX_SIZE, VERSION
from services.audit.index import Index, IndexFailedError, Row
from services.audit.rows import RowReader
from services.audit.store import LogStore

_READ_ENTRIES = 1024
# Rows that may wait in memory; past it the rest is read from the log later.
_MOST_WAITING = 65_536
_RETRY_SECONDS = 1.0
# Rows gather to be added together, unless somebody waits for them.
_ENOUGH_ROWS = 2048
_GATHER_SECONDS = 0.25

OpenEntry = Callable[[bytes, bytes], bytes]
"""Opens a sealed entry: (clear part, sealed part) → span; raises SealwardError."""


class Indexer:
    """One index behind one log. Thread-safe.

    `size` returns the number of entries of the log. `on_rows` is told of what was indexed, in the
    order of the log: (first, rows). It must be quick and must not raise.
    """

    def __init__(
        self,
        index: Index,
        store: LogStore,
        open_entry: OpenEntry,
        size: Callable[[], int],
        logger: structlog.typing.FilteringBoundLogger,
        on_rows: Callable[[int, Sequence[Row | None]], None] = lambda _first, _rows: None,
    ) -> None:
        self._index = index
        self._store = store
        self._open_entry = open_entry
        self._log_size = size
        self._logger = logger
        self._on_rows = on_rows
        self._reader = RowReader()
        self._condition = threading.Condition()
        self._waiting: deque[tuple[int, Sequence[Row | None]]] = deque()
        self._count = 0
        self._wanted = 0
        self._closed = False
        self._rebuilding = False
        self._stalled_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._stalled_since = time.monotonic() if self.behind else None
        self._thread.start()

    @property
    def behind(self) -> int:
        """How many entries the index lacks."""
        return max(0, self._log_size() - self._index.size)

    @property
    def stalled(self) -> float:
        """For how many seconds it has lacked entries without a step forward; 0 when it is up."""
        since = self._stalled_since
        return 0.0 if since is None else time.monotonic() - since

    def committed(self, first: int, rows: Sequence[Row | None]) -> None:
        """Take over what was just committed. Cheap; never blocks."""
        with self._condition:
            if self._stalled_since is None:
                self._stalled_since = time.monotonic()
            if self._count > _MOST_WAITING:
                self._waiting.clear()
                self._count = 0
            self._waiting.append((first, rows))
            before, self._count = self._count, self._count + len(rows)
            # Else its own timer wakes the thread: a commit is not to pay for it.
            if before < _ENOUGH_ROWS <= self._count:
                self._condition.notify_all()

    def wait(self, size: int, timeout: float = 10.0) -> None:
        """Return when the first `size` entries are indexed; raise SealwardError AUDIT_UNAVAILABLE.

        To be called with the size of the log before a query: it then sees all that was answered
        before it came.
        """
        with self._condition:
            if self._index.size < size:
                self._wanted = max(self._wanted, size)
                self._condition.notify_all()
            done = self._condition.wait_for(
                lambda: self._index.size >= size and not self._rebuilding, timeout
            )
        if not done:
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE, "the audit index is behind the log", retry_after=1.0
            )

    def rebuild(self, on_progress: Callable[[int, int], None] = lambda _done, _size: None) -> bytes:
        """Make the index anew from the log and return its table digest; raise SealwardError."""
        with self._condition:
            if self._rebuilding:
                raise SealwardError(Reason.AUDIT_UNAVAILABLE, "already running", retry_after=1.0)
            self._rebuilding = True
            self._condition.notify_all()
        try:
            self._index.clear()
            size = self._log_size()
            while self._index.size < size:
                self._read_some(tell=False)
                on_progress(self._index.size, size)
            return self._index.digest()
        except IndexFailedError:
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE, "the audit index failed", retry_after=1.0
            ) from None
        finally:
            with self._condition:
                self._rebuilding = False
                self._condition.notify_all()

    def stop(self, timeout: float) -> None:
        """Index what waits and end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._due, _GATHER_SECONDS)
                if self._closed and not self._waiting:
                    return
                if self._rebuilding or not self._behind():
                    continue
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the log goes on without its index
                self._logger.error(
                    "indexer.failed", error_type=type(error).__name__, where=where(error)
                )
                with self._condition:
                    if self._condition.wait_for(lambda: self._closed, _RETRY_SECONDS):
                        return

    def _due(self) -> bool:
        """Tell whether there is something to do at once. What is left is done when time is up."""
        return self._closed or (
            not self._rebuilding
            and (
                self._count >= _ENOUGH_ROWS
                or self._index.size < self._wanted
                # Not all that is missing is in memory: it has to be read from the log.
                or self._index.size + self._count < self._log_size()
            )
        )

    def _behind(self) -> bool:
        return bool(self._waiting) or self._index.size < self._log_size()

    def _step(self) -> None:
        if self._index.size > self._log_size():
            # Of a log that was longer than this one: nothing of it can be relied on.
            self._index.clear()
        first = self._index.size
        rows = self._take(first)
        if rows:
            self._index.add(first, rows)
            self._on_rows(first, rows)
        elif first < self._log_size():
            self._read_some(tell=True)
        with self._condition:
            # What came meanwhile is a little older than this says, and next.
            up = not self._waiting and self._index.size >= self._log_size()
            self._stalled_since = None if up else time.monotonic()
            self._condition.notify_all()

    def _take(self, first: int) -> list[Row | None]:
        """Take what waits and follows `first` without a hole."""
        rows: list[Row | None] = []
        with self._condition:
            while self._waiting:
                begin, some = self._waiting[0]
                at = first + len(rows)
                if begin > at:
                    break
                self._waiting.popleft()
                self._count -= len(some)
                rows += some[at - begin :]
        return rows

    def _read_some(self, *, tell: bool) -> None:
        first = self._index.size
        end = min(first + _READ_ENTRIES, self._log_size())
        rows = [self._row(leaf) for leaf in self._store.leaves(first, end)]
        self._index.add(first, rows)
        if tell:
            self._on_rows(first, rows)
        # Other threads get their turn: this is long work.
        time.sleep(0)

    def _row(self, leaf: bytes) -> Row | None:
        if leaf[0] != VERSION:
            return None
        span = self._open_entry(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
        return self._reader.read(leaf[1 : 1 + EVENT_ID_SIZE], span)
