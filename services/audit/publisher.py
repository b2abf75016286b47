"""Publishes the log as files: a C2SP tlog-tiles tree that any tlog tool reads.

Files are derived from the store and never read back as truth. Tiles are there before the checkpoint
that speaks of them. After a crash the start compares each with what the store says and writes anew
what differs. Where they go is a TileSink's business: a directory, or an object store.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from sealward.kit.errors import StartupError
from sealward.kit.logging import where
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import SignatureError, TlogError
from sealward.tlog.note import Verifier, parse_note
from sealward.tlog.tiles import (
    CHECKPOINT_PATH,
    COSIGNED_PATH,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    tiles_at,
    tiles_between,
)
from services.audit.directory_sink import DirectorySink, replace_file
from services.audit.log import LogView
from services.audit.store import LogStore
from services.audit.tilesink import SinkMovedError, SinkUnavailableError, TileSink

_RETRY_SECONDS = 1.0
# How long the partial forms of a full tile stay, for readers of an earlier checkpoint.
_LINGER_SECONDS = 10.0


class Publisher:
    """Keeps what is published up with a log, from a thread of its own.

    A folder stands for a DirectorySink in it.
    """

    def __init__(
        self,
        log: LogView,
        store: LogStore,
        sink: TileSink | Path,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        interval: float = 0.1,
        linger: float = _LINGER_SECONDS,
        on_published: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._log = log
        self._store = store
        self._sink = _sink(sink)
        self._logger = logger
        self._interval = interval
        self._linger = linger
        self._on_published = on_published
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._size = 0
        self._published = (0, b"")
        self._pending: tuple[int, bytes] | None = None
        self._compared = False
        self._failing = False
        self._behind_since: float | None = None
        self._outdated: deque[tuple[float, Tile]] = deque()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin: compare what is there, then follow the log."""
        self._thread.start()

    def changed(self) -> None:
        """Say that the log has grown. Cheap, from any thread."""
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        self._changed.set()

    @property
    def published(self) -> tuple[int, bytes]:
        """The newest size that is published, with the checkpoint as the log signed it."""
        return self._published

    def cosigned(self, size: int, note: bytes) -> None:
        """Publish a checkpoint that has its cosignatures now. Cheap, from any thread.

        It gets a file of its own, and is the checkpoint itself where that has not grown meanwhile.
        """
        self._pending = (size, note)
        self._changed.set()

    @property
    def behind(self) -> float:
        """For how many seconds there have been entries that are not published; 0 for none."""
        since = self._behind_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self, timeout: float) -> None:
        """Publish what is left and end."""
        self._stop.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def finish(self) -> bool:
        """Publish the end of a log that grows no more, after `stop`; return whether it is there."""
        return self._guard(self._again())

    def rebuild(self) -> int:
        """Make the files what the store says; return how many differed or were missing."""
        self._compared = False
        size, checkpoint = self._log.head
        repaired = 0
        sink = self._sink
        self._outdated.clear()
        sink.begin()
        found = sink.read(CHECKPOINT_PATH)
        if _size_of(found) > size:
            # Of a service that has taken over: its files are not this one's to write.
            raise SinkMovedError
        for tile in tiles_at(size):
            for form in (*self._earlier_forms(tile), tile):
                wanted = self._content(form)
                if not sink.holds(form.path, wanted):
                    repaired += 1
                    sink.write(form.path, wanted)
            self._outdate(tile)
        sink.flush()
        if found is None or not _extends(found, checkpoint):
            repaired += bool(size) and found != checkpoint
            sink.write(CHECKPOINT_PATH, checkpoint)
        self._complete(size, checkpoint)
        return repaired

    def publish(self) -> None:
        """Write what has changed since the last time, the checkpoint last."""
        size, checkpoint = self._log.head
        if size == self._size:
            self._behind_since = None
        else:
            for tile in tiles_between(self._size, size):
                self._sink.write(tile.path, self._content(tile))
                self._outdate(tile)
            self._sink.flush()
            self._sink.write(CHECKPOINT_PATH, checkpoint)
            self._complete(size, checkpoint)
            self._drop_partials()
        self._publish_cosigned()

    def _publish_cosigned(self) -> None:
        """Write the newest cosigned checkpoint, once its tiles are there."""
        pending = self._pending
        if pending is None or pending[0] > self._size:
            return
        note = pending[1]
        self._sink.write(COSIGNED_PATH, note)
        if _extends(note, self._published[1]):
            self._sink.write(CHECKPOINT_PATH, note)
        self._sink.flush()
        if self._pending is pending:
            self._pending = None

    def _complete(self, size: int, checkpoint: bytes) -> None:
        """Note that a checkpoint is there with everything under it."""
        self._sink.flush()
        self._size = size
        self._published = (size, checkpoint)
        self._compared = True
        # What came meanwhile is a little older than this says, and published next.
        self._behind_since = None if self._log.head[0] == size else time.monotonic()
        self._on_published(size)

    def _run(self) -> None:
        failing = not self._guard(self._first)
        while not self._stop.is_set() or self._changed.is_set():
            if failing:
                if self._stop.wait(_RETRY_SECONDS):
                    return
                failing = not self._guard(self._again())
                continue
            self._changed.wait()
            self._changed.clear()
            begun = time.monotonic()
            failing = not self._guard(self.publish)
            # The next round begins an interval after this one did.
            self._stop.wait(max(0.0, begun + self._interval - time.monotonic()))

    def _again(self) -> Callable[[], None]:
        """Return what a failed round is made good by: the comparison, unless it was whole."""
        return self.publish if self._compared else self._first

    def _first(self) -> None:
        repaired = self.rebuild()
        if repaired:
            self._logger.info("publisher.repaired", count=repaired, size=self._size)

    def _guard(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the log goes on without its copy
            # After a sink that was away, what was written is still there.
            self._compared &= isinstance(error, SinkUnavailableError)
            if not self._failing:
                self._failing = True
                self._logger.error(
                    "publisher.failed", error_type=type(error).__name__, where=where(error)
                )
            return False
        if self._failing:
            self._failing = False
            self._logger.info("publisher.recovered", size=self._size)
        return True

    def _content(self, tile: Tile) -> bytes:
        start = tile.index * TILE_WIDTH
        if tile.level is None:
            # Entries are framed in a bundle as they are in the store.
            return self._store.framed(start, start + tile.width)
        return self._log.hashes(TILE_HEIGHT * tile.level, start, start + tile.width)

    def _earlier_forms(self, tile: Tile) -> Iterator[Tile]:
        """Yield the partial forms of earlier sizes that are there beside a partial tile."""
        if tile.width != TILE_WIDTH:
            for width in self._sink.forms(tile):
                if width < tile.width:
                    yield replace(tile, width=width)

    def _drop_partials(self) -> None:
        """Remove the partial forms of tiles that are full (tlog-tiles, "Partial Tiles")."""
        now = time.monotonic()
        while self._outdated and self._outdated[0][0] <= now:
            self._sink.drop_forms(self._outdated.popleft()[1])

    def _outdate(self, tile: Tile) -> None:
        if tile.width == TILE_WIDTH and self._sink.forms(tile):
            self._outdated.append((time.monotonic() + self._linger, tile))


def check_published(sink: TileSink | Path, verifiers: Sequence[Verifier], log: LogView) -> bool:
    """Compare the published checkpoint with the log before anything new is signed.

    Raise StartupError when it is of a longer log or another tree (the store was rolled back or
    exchanged) or of another log, whose files must not be written over. Return False when it cannot
    be read as a checkpoint at all, as a crash may leave it: then it witnesses nothing.
    """
    try:
        found = _sink(sink).read(CHECKPOINT_PATH)
        if found is None:
            return True
        published = open_checkpoint(found, verifiers)
    except SinkUnavailableError:
        raise StartupError(
            "the tile store does not answer: what was published cannot be compared"
        ) from None
    except SignatureError:
        raise StartupError(
            f"{sink} holds a log that this store's key has not signed: move it away"
        ) from None
    except (OSError, TlogError):
        return False
    size, _ = log.head
    if published.size > size:
        raise StartupError(
            f"the audit store has {size} entries, but {published.size} were published:"
            " it was rolled back"
        )
    if published != Checkpoint(log.origin, published.size, log.root(published.size)):
        raise StartupError("the audit store is not the log that was published")
    return True


def _extends(note: bytes, checkpoint: bytes) -> bool:
    """Return whether a note is a checkpoint as the log signed it, and lines after that."""
    if not checkpoint or not note.startswith(checkpoint):
        return False
    try:
        return parse_note(note).text == parse_note(checkpoint).text
    except TlogError:
        return False


def write_vkey(path: Path, line: str) -> None:
    """Write the verifier key file: one line a key, mode 0600."""
    replace_file(path, f"{line}\n".encode())


def _sink(sink: TileSink | Path) -> TileSink:
    return DirectorySink(sink) if isinstance(sink, Path) else sink


def _size_of(checkpoint: bytes | None) -> int:
    """Return the size that a checkpoint claims (its second line); 0 when it is none."""
    line = (checkpoint or b"").split(b"\n", 2)[1:2]
    return int(line[0]) if line and line[0].isdigit() and len(line[0]) < 20 else 0
