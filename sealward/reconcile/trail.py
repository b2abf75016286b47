"""Rows of the log and lines of lists side by side, in a database that is gone when it is closed.

It holds ids, numbers and times, on the disk as far as memory is short (SQLite's private temporary
database), so that a log or a list of any length can be joined. No patient, no payload, no token.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from sealward.reconcile.items import Counts, Found, Heading, Item, Malformed, Other, Passed

SERVICES = ("gateway", "inference", "audit", "keys")
"""Producers whose spans have a parent of ours, or none."""

PREDICTION = "inference.predict"
LOGIN = "session.login"

_KEPT_LINES = 10_000
_BATCH = 5_000
_SCHEMA = """
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE rows (
  log INTEGER NOT NULL, idx INTEGER NOT NULL, event BLOB NOT NULL, time INTEGER NOT NULL,
  type INTEGER NOT NULL, outcome INTEGER NOT NULL, producer INTEGER NOT NULL,
  run INTEGER NOT NULL, seq INTEGER NOT NULL, session INTEGER NOT NULL, caller INTEGER NOT NULL,
  trace BLOB NOT NULL, span BLOB NOT NULL, parent BLOB NOT NULL, asked INTEGER NOT NULL,
  PRIMARY KEY (log, idx)
) WITHOUT ROWID;
CREATE TABLE gaps (
  run INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, closed INTEGER NOT NULL,
  event BLOB NOT NULL
);
CREATE TABLE items (
  file INTEGER NOT NULL, line INTEGER NOT NULL, event BLOB NOT NULL, session INTEGER NOT NULL,
  seq INTEGER NOT NULL, outcome TEXT NOT NULL, at INTEGER NOT NULL, log TEXT NOT NULL,
  idx INTEGER, sent INTEGER NOT NULL
);
CREATE TABLE passed (session INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL);
"""
_INDEXES = """
CREATE INDEX rows_by_event ON rows (event);
CREATE INDEX rows_by_run ON rows (run, seq);
CREATE INDEX rows_by_call ON rows (session, caller);
CREATE INDEX rows_by_span ON rows (span);
CREATE INDEX rows_by_parent ON rows (parent);
CREATE INDEX items_by_event ON items (event);
CREATE INDEX items_by_call ON items (session, seq);
"""


class Row(NamedTuple):
    """One event of the log, without whom it was about or who acted.

    `log` counts the logs read, from 0; `time` is the start in nanoseconds since the epoch; numbers
    are 0 and ids empty where the event has none. `target` matters for `audit.gap` alone. `asked`:
    it is about the user whom the comparison is limited to (True for all when it is not).
    """

    log: int
    log_index: int
    event_id: bytes
    time_unix_nano: int
    type: str
    outcome: str
    producer: str
    instance: str
    producer_seq: int
    session: str
    caller_seq: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    target: str
    asked: bool


class Trail:
    """The database. Not thread-safe. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        # The empty name: private, on the disk when it grows, removed when it is closed.
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-131072;" + _SCHEMA
        )
        self._names: dict[str, int] = {"": 0}
        self.logs: list[str] = []
        self.files: list[str] = []
        self.counts: list[Counts] = []
        self.heard: set[int] = set()
        self._parts: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        self.db.close()

    # --- what the log says -------------------------------------------------------------------

    def add_rows(self, rows: Iterable[Any]) -> None:
        """Add rows: `Row`, or messages with the same fields."""
        with self._writing():
            self.db.executemany(
                f"INSERT INTO rows VALUES ({', '.join('?' * 15)})",  # noqa: S608
                map(self._row, rows),
            )

    def heard_before(self, producer: str, instance: str) -> None:
        """Say that a run was heard before the time that was read: its lowest numbers are there."""
        self.heard.add(self.name(_run(producer, instance)))

    def _row(self, row: Any) -> tuple[Any, ...]:
        name = self.name
        run = name(_run(row.producer, row.instance)) if row.producer_seq and row.instance else 0
        if row.type == "audit.gap":
            self._gap(row)
        return (
            row.log, row.log_index, row.event_id, row.time_unix_nano, name(row.type),
            name(row.outcome), name(row.producer), run, row.producer_seq if run else 0,
            name(row.session), row.caller_seq, row.trace_id, row.span_id, row.parent_span_id,
            int(row.asked),
        )  # fmt: skip

    def _gap(self, row: Any) -> None:
        """Keep what an `audit.gap` says: its target is producer/instance/first-last."""
        producer, _, rest = row.target.rpartition("/")
        first, dash, last = rest.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            # The producer's name and its run, as `_run` joins them.
            run = self.name(_run(*producer.rpartition("/")[::2]))
            self.db.execute(
                "INSERT INTO gaps VALUES (?, ?, ?, ?, ?)",
                (run, int(first), int(last), row.outcome == "ok", row.event_id),
            )

    # --- what the other party says -----------------------------------------------------------

    def add_list(self, file: str, found: Iterable[Found]) -> Counts:
        """Add a list; return what it held. `file` is the name that it is called by."""
        number, counts = len(self.files), Counts()
        self.files.append(file)
        self.counts.append(counts)
        with self._writing():
            self.db.executemany(
                f"INSERT INTO items VALUES ({', '.join('?' * 10)})",  # noqa: S608
                self._items(number, found, counts),
            )
        return counts

    def _items(
        self, file: int, found: Iterable[Found], counts: Counts
    ) -> Iterator[tuple[Any, ...]]:
        for one in found:
            counts.lines = max(counts.lines, one.line)
            match one:
                case Item():
                    counts.items += 1
                    yield (
                        file, one.line, one.event_id, self.name(one.session), one.seq, one.outcome,
                        one.at, one.log, one.log_index, int(one.sent),
                    )  # fmt: skip
                case Passed():
                    self.db.execute(
                        "INSERT INTO passed VALUES (?, ?, ?)",
                        (self.name(one.session), one.first, one.last),
                    )
                case Malformed():
                    counts.malformed_count += 1
                    if len(counts.malformed) < _KEPT_LINES:
                        counts.malformed.append(one.line)
                case Heading():
                    counts.other += 1
                    self._parts.add(one.part)
                case Other():
                    counts.other += 1

    # --- questions ---------------------------------------------------------------------------

    @property
    def first_part(self) -> bool:
        """Whether the lists begin where they began: a client keeps no more than so much."""
        return not self._parts or 1 in self._parts

    def ready(self) -> None:
        """Make the indexes; to be called when everything was added, before the first question."""
        self.db.executescript(_INDEXES + "ANALYZE;")

    def ask(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield rows of an answer."""
        yield from self.db.execute(sql, values)

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the one value of an answer."""
        return self.db.execute(sql, values).fetchone()[0]

    def name(self, text: str) -> int:
        """Return the number of a name; 0 for the empty one."""
        number = self._names.get(text)
        if number is None:
            found = self.db.execute("SELECT id FROM names WHERE name = ?", (text,)).fetchone()
            if found is None:
                cursor = self.db.execute("INSERT INTO names (name) VALUES (?)", (text,))
                found = (int(cursor.lastrowid or 0),)
            if len(self._names) > 100_000:
                self._names = {"": 0}
            number = self._names[text] = int(found[0])
        return number

    def text(self, number: int) -> str:
        """Return the name of a number."""
        found = self.db.execute("SELECT name FROM names WHERE id = ?", (number,)).fetchone()
        return str(found[0]) if found else ""

    def _writing(self) -> _Transaction:
        return _Transaction(self.db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What was added before an error stays out of every question: the whole is thrown away.
        self._db.execute("COMMIT")


def _run(producer: str, instance: str) -> str:
    return f"{producer}/{instance}"
