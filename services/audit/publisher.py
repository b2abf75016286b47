"""Publishes the log as files: a C2SP tlog-tiles tree that any tlog tool reads.

Files are derived from the store and never read back as truth. They are written to a temporary name
and renamed, tiles before the checkpoint that speaks of them, and not synced: after a crash the
start compares each with what the store says and writes anew what differs.
"""

from __future__ import annotations

import os
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
from sealward.tlog.note import Verifier
from sealward.tlog.tiles import (
    CHECKPOINT_PATH,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    encode_bundle,
    tiles_at,
    tiles_between,
)
from services.audit.log import LogView
from services.audit.store import LogStore

_RETRY_SECONDS = 1.0
# How long the partial forms of a full tile stay, for readers of an earlier checkpoint.
_LINGER_SECONDS = 10.0


class Publisher:
    """Keeps a directory (0700, files 0600) up with a log, from a thread of its own."""

    def __init__(
        self,
        log: LogView,
        store: LogStore,
        folder: Path,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        interval: float = 0.1,
        linger: float = _LINGER_SECONDS,
        on_published: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._log = log
        self._store = store
        self._folder = folder
        self._logger = logger
        self._interval = interval
        self._linger = linger
        self._on_published = on_published
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._size = 0
        self._known: set[Path] = set()
        self._outdated: deque[tuple[float, Path]] = deque()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin: compare what is there, then follow the log."""
        self._thread.start()

    def changed(self) -> None:
        """Say that the log has grown. Cheap, from any thread."""
        self._changed.set()

    def stop(self, timeout: float) -> None:
        """Publish what is left and end."""
        self._stop.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def finish(self) -> bool:
        """Publish the end of a log that grows no more, after `stop`; return whether it is there."""
        return self._guard(self.publish if self._known else self._first)

    def rebuild(self) -> int:
        """Make the files what the store says; return how many differed or were missing."""
        size, checkpoint = self._log.head
        repaired = 0
        self._outdated.clear()
        for left in self._folder.rglob(".*.new"):
            left.unlink()
        for tile in tiles_at(size):
            for form in (*self._earlier_forms(tile), tile):
                wanted = self._content(form)
                path = self._folder / form.path
                if not _holds(path, wanted):
                    repaired += 1
                    self._write(path, wanted)
            self._outdate(tile)
        if size and not _holds(self._folder / CHECKPOINT_PATH, checkpoint):
            repaired += 1
        self._write(self._folder / CHECKPOINT_PATH, checkpoint)
        self._size = size
        self._on_published(size)
        return repaired

    def publish(self) -> None:
        """Write what has changed since the last time, the checkpoint last."""
        size, checkpoint = self._log.head
        if size == self._size:
            return
        for tile in tiles_between(self._size, size):
            self._write(self._folder / tile.path, self._content(tile))
            self._outdate(tile)
        self._write(self._folder / CHECKPOINT_PATH, checkpoint)
        self._size = size
        self._on_published(size)
        self._drop_partials()

    def _run(self) -> None:
        failing = not self._guard(self._first)
        while not self._stop.is_set() or self._changed.is_set():
            if failing:
                if self._stop.wait(_RETRY_SECONDS):
                    return
                # What a failed round left half done, the comparison finds.
                failing = not self._guard(self._first)
                continue
            self._changed.wait()
            self._changed.clear()
            begun = time.monotonic()
            failing = not self._guard(self.publish)
            # The next round begins an interval after this one did.
            self._stop.wait(max(0.0, begun + self._interval - time.monotonic()))

    def _first(self) -> None:
        repaired = self.rebuild()
        if repaired:
            self._logger.info("publisher.repaired", count=repaired, size=self._size)

    def _guard(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the log goes on without its copy
            self._logger.error(
                "publisher.failed", error_type=type(error).__name__, where=where(error)
            )
            return False
        return True

    def _content(self, tile: Tile) -> bytes:
        start = tile.index * TILE_WIDTH
        if tile.level is None:
            return encode_bundle(self._store.leaves(start, start + tile.width))
        return self._log.hashes(TILE_HEIGHT * tile.level, start, start + tile.width)

    def _write(self, path: Path, data: bytes) -> None:
        self._make(path.parent)
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)

    def _make(self, folder: Path) -> None:
        if folder not in self._known:
            # One by one: mkdir gives its mode to the last folder alone.
            if folder != self._folder:
                self._make(folder.parent)
            folder.mkdir(mode=0o700, parents=folder == self._folder, exist_ok=True)
            self._known.add(folder)

    def _earlier_forms(self, tile: Tile) -> Iterator[Tile]:
        """Yield the partial forms of earlier sizes that are there beside a partial tile."""
        if tile.width != TILE_WIDTH:
            for width in range(1, tile.width):
                form = replace(tile, width=width)
                if (self._folder / form.path).exists():
                    yield form

    def _drop_partials(self) -> None:
        """Remove the partial forms of tiles that are full (tlog-tiles, "Partial Tiles")."""
        now = time.monotonic()
        while self._outdated and self._outdated[0][0] <= now:
            _, folder = self._outdated.popleft()
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()
            self._known.discard(folder)

    def _outdate(self, tile: Tile) -> None:
        folder = self._folder / f"{tile.path}.p"
        if tile.width == TILE_WIDTH and folder.is_dir():
            self._outdated.append((time.monotonic() + self._linger, folder))


def check_published(folder: Path, verifiers: Sequence[Verifier], log: LogView) -> bool:
    """Compare the published checkpoint with the log before anything new is signed.

    Raise StartupError when it is of a longer log or another tree (the store was rolled back or
    exchanged) or of another log, whose files must not be written over. Return False when it cannot
    be read as a checkpoint at all, as a crash may leave it: then it witnesses nothing.
    """
    try:
        published = open_checkpoint((folder / CHECKPOINT_PATH).read_bytes(), verifiers)
    except FileNotFoundError:
        return True
    except SignatureError:
        raise StartupError(
            f"{folder} holds a log that this store's key has not signed: move it away"
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


def write_vkey(path: Path, line: str) -> None:
    """Write the verifier key file: one line a key, mode 0600."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{line}\n".encode())
    temporary.replace(path)


def _holds(path: Path, wanted: bytes) -> bool:
    try:
        return path.read_bytes() == wanted
    except OSError:
        return False
