"""`log.entries`: the file that makes a batch durable, with one fdatasync.

Records are only ever appended (entryrecord.py has their form). A batch is written in two steps:
its leaves go to the disk while the caller hashes them (`begin`), then come their hashes and the new
root, and both are synced (`commit`). Reading takes bytes from where they are; a record that is read
from its first entry on is read whole and checked.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sealward.seal.durable import sync_folder
from sealward.tlog.merkle import EMPTY_ROOT, HASH_SIZE
from services.audit.entryrecord import (
    FIRST_CHECK,
    HEAD_BYTES,
    MAGIC,
    START_BYTES,
    Record,
    RecordError,
    RecordHead,
    begin_record,
    end_record,
    file_start,
    is_unfinished,
    parse_head,
    parse_record,
    parse_start,
)
from services.audit.framing import unframed
from services.audit.store import StoreBrokenError, StoreError, StoreFullError

# Less than this is written in one piece with what follows it: a page that is on its way to the disk
# would have to go there again.
_EARLY_BYTES = 64 << 10
_PAGE_BYTES = 4096
# Where a record begins is remembered once in so many bytes; from there it goes from head to head.
_STEP_BYTES = 64 << 10
_SEARCH_BYTES = 4 << 20
_LENGTHS = {count: struct.Struct(f">{count}H") for count in range(1, 257)}
_SYNC_FILE_RANGE_WRITE = 2


class Mark(NamedTuple):
    """A state of the file: its newest record begins at byte `at`; `size` entries, their root."""

    at: int
    size: int
    root: bytes
    check: int


NOTHING = Mark(0, 0, EMPTY_ROOT, FIRST_CHECK)


class DamagedError(Exception):
    """A record that was acknowledged is not what was written. The text names the place."""


class EntryFile:
    """One file. One thread at a time writes; reads come from any thread."""

    def __init__(self, path: Path, *, sealed: bool = False) -> None:
        """Open a file that is there; raise OSError or DamagedError.

        It has no entries before `resume`. `sealed`: nobody writes it.
        """
        self._path = path
        self._sealed = sealed
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._failed = self._owned = False
        self._file = os.open(path, (os.O_RDONLY if sealed else os.O_RDWR) | os.O_CLOEXEC)
        self._begun: tuple[int, Sequence[bytes], bytes, int] | None = None
        self._written = self._end = START_BYTES
        self._mark = NOTHING
        self.puts = 0
        """What the newest record says of the named values."""
        self._firsts, self._places = array("Q"), array("Q")
        try:
            self.identity = parse_start(self.read(0, START_BYTES))
        except (RecordError, StoreBrokenError):
            self.close()
            raise DamagedError(f"{path} does not begin as a file of entries") from None

    @staticmethod
    def create(path: Path, identity: bytes) -> None:
        """Make an empty file (0600), durably; one that is there is replaced. Raise OSError."""
        temporary = path.with_name(f".{path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600)
        try:
            os.write(file, file_start(identity))
            os.fsync(file)
        finally:
            os.close(file)
        adopt_file(temporary, path)

    @property
    def mark(self) -> Mark:
        """The state after the newest durable record."""
        return self._mark

    @property
    def empty(self) -> bool:
        """True when no byte follows the start of the file."""
        return os.fstat(self._file).st_size <= START_BYTES

    def places(self, known: int) -> list[tuple[int, int]]:
        """Return those remembered beginnings (first entry, byte) that follow the first `known`."""
        return list(zip(self._firsts[known:], self._places[known:], strict=False))

    def resume(
        self,
        mark: Mark,
        places: Sequence[tuple[int, int]],
        on_record: Callable[[Record], None] = lambda _record: None,
    ) -> int:
        """Go on from a state that was kept elsewhere; return how many bytes of a torn end went.

        `places` are the remembered beginnings up to then. Each record after the mark is checked and
        given to `on_record`. What follows the last whole one is dropped when it was never written
        whole, hence never acknowledged; raise DamagedError for anything else, and StoreError.
        """
        self._firsts = array("Q", [first for first, _ in places])
        self._places = array("Q", [at for _, at in places])
        total = os.fstat(self._file).st_size
        if mark.size:
            if not places or places[0] != (0, START_BYTES):
                raise DamagedError(f"it is not known where the records of {self._path} begin")
            record = self._record(mark.at, total)
            head = record.head if record else None
            if record is None or head is None or head.first + head.count != mark.size:
                raise DamagedError(
                    f"{self._path} was rolled back or changed: {mark.size} entries were in it"
                )
            if (record.check, record.root) != (mark.check, mark.root):
                raise DamagedError(f"{self._path} is not the file that was written")
            self._mark, self._end, self.puts = mark, mark.at + head.bytes, head.puts
        while (record := self._record(self._end, total)) is not None:
            head = record.head
            if head.first != self._mark.size or head.before != self._mark.check:
                raise self._damaged(self._end)
            self._take(head, record.root, record.check)
            on_record(record)
        return self._drop(total)

    def begin(self, first: int, leaves: Sequence[bytes], puts: int = 0) -> None:
        """Let the disk begin to write entries [first, first + n); raise StoreError.

        Without the `commit` that belongs to it nothing was stored.
        """
        if self._failed:
            raise StoreBrokenError("the audit store has failed")
        if not self._owned:
            self._own(self._end)
        self._clean()
        begun = begin_record(self.identity, first, leaves, puts, self._mark.check)
        if len(begun) >= _EARLY_BYTES:
            self._write(begun, self._end)
            # Only asks for it: what has been written by then, the sync need not wait for. The last
            # page is left out, more goes into it.
            end = self._end + len(begun)
            _start_writing(self._file, self._end, end - end % _PAGE_BYTES - self._end)
        self._begun = (first, leaves, begun, puts)

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        ids: bytes,
        prints: bytes,
        root: bytes,
        puts: int = 0,
    ) -> None:
        """Make entries durable, or nothing of them; raise StoreError. `ids`, `prints` joined.

        `puts` as in entryrecord.py.
        """
        before = self._begun
        if before is None or (before[0], before[3]) != (first, puts) or before[1] is not leaves:
            self.begin(first, leaves, puts)
        if first != self._mark.size or self._begun is None:
            raise StoreBrokenError("a batch does not follow the last one")
        begun, self._begun = self._begun[2], None
        rest, check = end_record(begun, leaves, hashes, ids, prints, root)
        if len(begun) >= _EARLY_BYTES:
            self._write(rest, self._end + len(begun))
        else:
            self._write(begun + rest, self._end)
        try:
            os.fdatasync(self._file)
        except OSError as error:
            # Whatever it says: the kernel may have dropped what it could not write.
            self._failed = True
            raise _broken(error) from None
        length = len(begun) - HEAD_BYTES
        self._take(RecordHead(len(leaves), first, length, puts, self._mark.check), root, check)

    def framed(self, start: int, end: int) -> bytes:
        """Return the leaves [start, end) as one value (framing.py); raise StoreBrokenError."""
        parts = []
        for at, head, low, high in self._spans(start, end):
            if not low:
                framed = self._whole(at, head).framed
                if high < head.count:
                    framed = framed[: sum(self._lengths(at, head, high)) + 2 * high]
                parts.append(framed)
            else:
                lengths = self._lengths(at, head, high)
                begin = sum(lengths[:low]) + 2 * low
                length = sum(lengths[low:]) + 2 * (high - low)
                parts.append(self.read(at + HEAD_BYTES + begin, length))
        return b"".join(parts)

    def leaves(self, start: int, end: int) -> list[bytes]:
        """Return the leaves [start, end); raise StoreBrokenError."""
        return unframed(self.framed(start, end), end - start) if end > start else []

    def hashes(self, start: int, end: int) -> bytes:
        """Return the joined leaf hashes of [start, end); raise StoreBrokenError."""
        return b"".join(
            [
                self.read(at + head.hashes + low * HASH_SIZE, (high - low) * HASH_SIZE)
                for at, head, low, high in self._spans(start, end)
            ]
        )

    def close(self) -> None:
        """Close it once those who read have done so."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if not self._users:
                    os.close(self._file)

    def read(self, at: int, length: int) -> bytes:
        """Return bytes of the file; raise StoreBrokenError."""
        with self._lock:
            if self._closed:
                raise StoreBrokenError("the audit store is closed")
            self._users += 1
        try:
            found = os.pread(self._file, length, at)
        except OSError as error:
            raise _broken(error) from None
        finally:
            self._let_go()
        if len(found) != length:
            raise StoreBrokenError("entries are missing from the store")
        return found

    def _let_go(self) -> None:
        with self._lock:
            self._users -= 1
            if self._closed and not self._users:
                os.close(self._file)

    # --- writing --------------------------------------------------------------------------------

    def _own(self, total: int) -> None:
        """Become the one that writes the file, which has `total` bytes, until it is closed."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBrokenError("another audit service writes the log") from None
        except OSError as error:
            raise _broken(error) from None
        if os.fstat(self._file).st_size != total:
            raise StoreBrokenError("another audit service has written the log")
        self._owned = True

    def _write(self, data: bytes, at: int) -> None:
        self._written = at + len(data)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:] if done else data, at + done)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._failed = True
                raise _broken(error) from None
            self._clean()
            raise StoreFullError("no space for the audit log") from None

    def _clean(self) -> None:
        """Take away what a batch left that came to nothing."""
        self._begun = None
        if self._written != self._end:
            try:
                os.ftruncate(self._file, self._end)
            except OSError as error:
                self._failed = True
                raise _broken(error) from None
            self._written = self._end

    def _take(self, head: RecordHead, root: bytes, check: int) -> None:
        at = self._end
        if not self._places or at - self._places[-1] >= _STEP_BYTES:
            # In this order: who looks a place up finds the first entries and then the bytes.
            self._places.append(at)
            self._firsts.append(head.first)
        self._written = self._end = at + head.bytes
        self._mark = Mark(at, head.first + head.count, root, check)
        self.puts = head.puts

    # --- reading --------------------------------------------------------------------------------

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, RecordHead, int, int]]:
        """Yield byte, head, and which of its entries [low, high), for each record of [start, end).

        What it reads at once is a step, so that small records do not cost a read each.
        """
        if not 0 <= start <= end <= self._mark.size:
            raise StoreBrokenError("entries are missing from the store")
        if start == end:
            return
        at = self._places[bisect_right(self._firsts, start) - 1]
        final, seen, window = self._end, 0, b""
        while start < end:
            if not seen <= at <= seen + len(window) - HEAD_BYTES:
                seen, window = at, self.read(at, min(_STEP_BYTES, final - at))
            head = self._head(window[at - seen : at - seen + HEAD_BYTES], at)
            if head.first > start:
                raise StoreBrokenError(f"{self._path.name} is damaged at byte {at}")
            if head.first + head.count > start:
                low, high = start - head.first, min(end - head.first, head.count)
                yield at, head, low, high
                start = head.first + high
            at += head.bytes

    def _head(self, data: bytes, at: int) -> RecordHead:
        try:
            return parse_head(self.identity, data)
        except RecordError:
            raise StoreBrokenError(f"{self._path.name} is damaged at byte {at}") from None

    def _whole(self, at: int, head: RecordHead) -> Record:
        try:
            return parse_record(self.identity, self.read(at, head.bytes))
        except RecordError:
            raise StoreBrokenError(f"{self._path.name} is damaged at byte {at}") from None

    def _lengths(self, at: int, head: RecordHead, count: int) -> Sequence[int]:
        form = _LENGTHS.get(count) or struct.Struct(f">{count}H")
        return form.unpack(self.read(at + head.table, 2 * count))

    # --- after a crash --------------------------------------------------------------------------

    def _record(self, at: int, total: int) -> Record | None:
        """Return the record at a byte of a file of `total` bytes; None when none is whole there."""
        if at + HEAD_BYTES > total:
            return None
        try:
            head = parse_head(self.identity, self.read(at, HEAD_BYTES))
            if at + head.bytes > total:
                return None
            return parse_record(self.identity, self.read(at, head.bytes))
        except RecordError:
            return None

    def _drop(self, total: int) -> int:
        """Drop what follows the last whole record; raise DamagedError when it was one."""
        at = self._end
        left = total - at
        if not left:
            return 0
        data = self.read(at, min(left, HEAD_BYTES))
        unfinished = is_unfinished(data, at, HEAD_BYTES)
        if not unfinished:
            try:
                head = parse_head(self.identity, data)
            except RecordError:
                raise self._damaged(at) from None
            unfinished = is_unfinished(self.read(at, min(left, head.bytes)), at, head.bytes)
        # A record is begun when the one before is on the disk, never earlier.
        if not unfinished or self._begins(at + 1, total):
            raise self._damaged(at)
        if self._sealed:
            raise self._damaged(at)
        # Somebody else's batch that is on its way looks just so.
        self._own(total)
        self._written = total
        self._clean()
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _broken(error) from None
        return left

    def _begins(self, at: int, total: int) -> bool:
        """Return whether a record begins somewhere in [at, total)."""
        while at + HEAD_BYTES <= total:
            data = self.read(at, min(_SEARCH_BYTES, total - at))
            found = data.find(MAGIC)
            while found >= 0:
                try:
                    parse_head(self.identity, data[found : found + HEAD_BYTES])
                except RecordError:
                    found = data.find(MAGIC, found + 1)
                else:
                    return True
            at += max(1, len(data) - HEAD_BYTES + 1)
        return False

    def _damaged(self, at: int) -> DamagedError:
        return DamagedError(
            f"{self._path} is damaged at byte {at}, after {self._mark.size} entries: nothing of it"
            " was dropped"
        )


def adopt_file(temporary: Path, path: Path) -> None:
    """Give a synced file its name, durably; raise OSError."""
    temporary.replace(path)
    sync_folder(path.parent)


def _broken(error: OSError) -> StoreError:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return StoreBrokenError(f"the audit store failed ({name})")


def _writeback() -> Callable[[int, int, int], None]:
    """Return what makes the kernel begin to write a part of a file, without waiting.

    The standard library has no name for it. It is of no consequence for what is durable: where
    there is none, the sync does it all.
    """
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return lambda _file, _at, _length: None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

    def start(file: int, at: int, length: int) -> None:
        call(file, at, length, _SYNC_FILE_RANGE_WRITE)

    return start


_start_writing = _writeback()
