"""The embedded store: entries in a file of their own, and SQLite to find them.

A commit is one record in `log.entries` and one fdatasync (entryfile.py). `log.db` (finder.py) is
brought up to date by a thread of its own, in large steps; the ids that it does not have yet are
held here, and a start reads them from the records that follow its mark.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sealward.kit.errors import StartupError
from services.audit.entryfile import NOTHING, DamagedError, EntryFile, Mark
from services.audit.entryrecord import ID_BYTES, IDENTITY_BYTES, START_BYTES, Record
from services.audit.finder import Finder
from services.audit.sqlite_file import cannot_open
from services.audit.store import EventKey, Head, StoreBrokenError, StoreError, StoreFullError

ENTRIES = "log.entries"
"""The file of the entries, beside the one that finds them."""

# Ids that are worth a step of the finder, how long fewer wait, and how many are held at most.
_STEP = 8192
_LAZY_SECONDS = 1.0
_MOST = 32_768
_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Held:
    """Entries that the finder does not have: what it is told, and where each is meanwhile."""

    first: int = 0
    mark: Mark = NOTHING
    ids: list[bytes] = field(default_factory=list)
    prints: list[bytes] = field(default_factory=list)
    found: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, first: int, ids: Sequence[bytes], prints: Sequence[bytes], mark: Mark) -> None:
        if not self.ids:
            self.first = first
        self.ids += ids
        self.prints += prints
        places = zip(range(first, first + len(ids)), prints, strict=True)
        self.found.update(zip(ids, places, strict=True))
        self.mark = mark


class EmbeddedStore:
    """A LogStore in two files (0600) of one folder. See store.py for each method's contract."""

    def __init__(self, path: Path, *, sealed: bool = False) -> None:
        """Open or create the store whose `log.db` is at `path`; raise StartupError.

        `sealed`: the files are there, read-only, and nobody writes them.
        """
        self._path = path
        self._changed = threading.Condition()
        self._fresh, self._filing = _Held(), _Held()
        self._thread: threading.Thread | None = None
        self._closing = self._stuck = False
        self._failed = ""
        self._finder = Finder(path, sealed=sealed)
        try:
            self._file = self._open(path.with_name(ENTRIES), sealed=sealed)
            try:
                self._placed = len(self._finder.places)
                self._file.resume(self._finder.mark, self._finder.places, self._resumed)
                if self._file.puts > self._finder.puts:
                    raise DamagedError(
                        f"{path} was rolled back: keys of newer entries are not in it"
                    )
                if not sealed:
                    self._catch_up()
                    if self._stuck:
                        self._start()
            except BaseException:
                self._file.close()
                raise
        except BaseException as error:
            self._finder.close()
            if isinstance(error, DamagedError):
                raise StartupError(f"the audit store was changed: {error}") from None
            if isinstance(error, StoreError):
                raise StartupError(f"the audit store {path} cannot be opened: {error}") from None
            if isinstance(error, OSError):
                raise cannot_open(path.with_name(ENTRIES), error) from None
            raise

    def _open(self, entries: Path, *, sealed: bool) -> EntryFile:
        identity = self._finder.identity
        if identity is None:
            if sealed or (entries.exists() and entries.stat().st_size > START_BYTES):
                raise StartupError(
                    f"{entries} holds entries, and {self._path.name} beside it, which holds their"
                    " keys, is new: restore it"
                )
            identity = secrets.token_bytes(IDENTITY_BYTES)
            EntryFile.create(entries, identity)
            self._finder.belong(identity)
        elif not entries.exists():
            raise StartupError(f"the audit store was changed: {entries} is missing")
        file = EntryFile(entries, sealed=sealed)
        if file.identity != identity:
            file.close()
            raise DamagedError(f"{entries} is not the file that {self._path.name} belongs to")
        return file

    def _resumed(self, record: Record) -> None:
        ids, prints = _split(record.ids), _split(record.prints)
        self._fresh.add(record.head.first, ids, prints, self._file.mark)
        if len(self._fresh.ids) >= _MOST:
            self._catch_up()

    def _catch_up(self) -> None:
        """Bring the finder up to date now, unless the disk is full; raise StoreBrokenError."""
        try:
            while self._fresh.ids or self._filing.ids:
                self._step()
        except StoreFullError:
            self._stuck = True

    def head(self) -> Head | None:
        """See LogStore."""
        mark = self._file.mark
        return Head(mark.size, mark.root) if mark.size else None

    def begin(self, first: int, leaves: Sequence[bytes]) -> None:
        """See LogStore."""
        self._file.begin(first, leaves, self._finder.puts)

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        keys: Sequence[EventKey],
        head: Head,
    ) -> None:
        """See LogStore."""
        ids, prints = zip(*keys, strict=True)
        self._make_room()
        self._file.commit(
            first, leaves, hashes, b"".join(ids), b"".join(prints), head.root, self._finder.puts
        )
        with self._changed:
            held = len(self._fresh.ids)
            self._fresh.add(first, ids, prints, self._file.mark)
            if self._thread is None:
                self._start()
            elif not held or held < _STEP <= len(self._fresh.ids):
                self._changed.notify_all()

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        with self._changed:
            # What is taken up is let go of afterwards: it is in one or the other.
            held = [
                (event_id, place)
                for event_id in event_ids
                if (place := self._fresh.found.get(event_id) or self._filing.found.get(event_id))
            ]
        if not held:
            return self._finder.find(event_ids)
        return {**self._finder.find(event_ids), **dict(held)}

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See LogStore."""
        return self._file.leaves(start, end)

    def framed(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return self._file.framed(start, end)

    def hashes(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return self._file.hashes(start, end)

    def get(self, name: str) -> bytes | None:
        """See LogStore."""
        return self._finder.get(name)

    def names(self, prefix: str) -> list[str]:
        """See LogStore."""
        return self._finder.names(prefix)

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """See LogStore."""
        self._finder.put(values)

    def forget(self, prefix: str) -> int:
        """See LogStore: no named value was ever in the file of the entries."""
        return self._finder.forget(prefix)

    def seal(self) -> None:
        """See LogStore."""
        self._end()
        self._finish()
        self._finder.seal()
        self._file.close()

    def maintain(self) -> None:
        """See LogStore."""
        self._finder.maintain()

    def close(self) -> None:
        """See LogStore. What the finder could not take up the next start reads again."""
        self._end()
        with suppress(StoreError):
            self._finish()
        self._finder.close()
        self._file.close()

    # --- the finder's thread --------------------------------------------------------------------

    def _make_room(self) -> None:
        """Wait while too much is held; raise StoreError when that does not end."""
        with self._changed:
            while not self._failed and len(self._fresh.ids) >= _MOST:
                if self._stuck:
                    raise StoreFullError("no space for the audit log")
                self._changed.wait()
            if self._failed:
                raise StoreBrokenError(self._failed)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="finder", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if not self._closing:
                    self._changed.wait_for(self._is_due, _LAZY_SECONDS)
                if self._closing:
                    return
            try:
                self._step()
                stuck = False
            except StoreFullError:
                stuck = True
            except Exception as error:  # noqa: BLE001 - who waits for room must be told
                self._fail(error)
                return
            with self._changed:
                self._stuck = stuck
                self._changed.notify_all()
                if stuck:
                    self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)

    def _fail(self, error: Exception) -> None:
        known = isinstance(error, StoreError)
        with self._changed:
            self._failed = str(error) if known else f"the finder failed ({type(error).__name__})"
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._closing or bool(self._fresh.ids or self._filing.ids)

    def _is_due(self) -> bool:
        return self._closing or bool(self._filing.ids) or len(self._fresh.ids) >= _STEP

    def _step(self) -> None:
        """Let the finder take up what is held; raise StoreError."""
        with self._changed:
            if not self._filing.ids:
                self._filing, self._fresh = self._fresh, _Held()
        held = self._filing
        places = [p for p in self._file.places(self._placed) if p[0] < held.mark.size]
        self._finder.file(held.first, held.ids, b"".join(held.prints), places, held.mark)
        self._placed += len(places)
        with self._changed:
            self._filing = _Held()

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _finish(self) -> None:
        if self._failed:
            raise StoreBrokenError(self._failed)
        while self._fresh.ids or self._filing.ids:
            self._step()


def _split(joined: bytes) -> list[bytes]:
    return [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
