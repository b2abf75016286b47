"""A shard: one log of one tenant and year, with everything around it.

`LiveShard` is the one that grows. `PastShard` is one that has ended: at the start only what names
it is read; its store, its tree, its index and its keys are opened when somebody asks, and its tree
is not made of every entry again but of the hashes that were kept with the final checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.merkle import HASH_SIZE
from sealward.tlog.note import parse_note, parse_vkeys
from sealward.tlog.tiledtree import TiledTree
from sealward.tlog.tiles import COSIGNED_PATH, TILE_HEIGHT, TILE_WIDTH
from services.audit.backend import Backend, Place
from services.audit.digests import IndexKeys
from services.audit.entry import EntryMaker
from services.audit.index import Index, Row
from services.audit.indexer import Indexer
from services.audit.log import Log, LogView
from services.audit.origin import (
    LogKeys,
    LogName,
    key_state,
    open_index_key,
    open_log_keys,
    vkey_lines,
)
from services.audit.patients import SINCE, Patients
from services.audit.publisher import Publisher, check_published
from services.audit.segments import KeyRing, Segments
from services.audit.store import LogStore, StoreBrokenError, StoreError
from services.audit.tilesink import SinkUnavailableError, TileSink

FINAL, FINAL_TIME, FINAL_ROOTS, STATE = "final", "final/time", "final/roots", "state"
"""Named values of a log that has ended: its final checkpoint, when (nanoseconds since the epoch, in
decimal), the joined roots of its full tiles, and its state."""

FINAL_COSIGNED = "final/cosigned"
"""Its final checkpoint with the cosignatures that the policy asks for, once it has them."""

FINAL_COSE = "final/cose"
"""What its key signed of the final root for COSE receipts (sealward.tlog.cose.sign_root)."""

_CLOSINGS = 3

State = Literal["current", "frozen", "archived", "purged"]


class Shard(Protocol):
    """What review, proofs and retention need of a log, whether it grows or not.

    Attributes of a log that has ended may open files and ask the keys service: StartupError,
    StoreError and SealwardError may come from each of them.
    """

    @property
    def name(self) -> LogName:
        """Its origin, taken apart."""

    @property
    def origin(self) -> str:
        """Its name."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def state(self) -> State:
        """How far it has come."""

    @property
    def place(self) -> Place:
        """Where it lies."""

    @property
    def vkeys(self) -> list[str]:
        """Its verifier key lines, the newest first."""

    @property
    def store(self) -> LogStore:
        """The truth."""

    @property
    def log(self) -> LogView:
        """Heads, receipts and proofs."""

    @property
    def cosigned(self) -> tuple[int, bytes]:
        """The newest size whose checkpoint satisfies the witness policy, and that checkpoint."""

    @property
    def index(self) -> Index:
        """Its rows. SealwardError LOG_PURGED when they are gone."""

    @property
    def indexer(self) -> Indexer:
        """What keeps the index up. As `index`."""

    @property
    def segments(self) -> Segments:
        """What opens its entries. As `index`."""

    @property
    def index_keys(self) -> IndexKeys:
        """Its pseudonyms and digests. As `index`."""

    @property
    def patients(self) -> Patients:
        """The patients' keys. As `index`."""

    @property
    def maker(self) -> EntryMaker:
        """What makes candidates under its keys. As `index`."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom a growing log tells: of its size, of what was published, of its disk, of its end.

    `check` looks at a log before anything is appended to it; raises StartupError or SealwardError.
    """

    on_size: Callable[[Shard, int], None] = lambda _shard, _size: None
    on_published: Callable[[Shard, int], None] = lambda _shard, _size: None
    on_full: Callable[[bool], None] = lambda _full: None
    on_broken: Callable[[str], None] = lambda _reason: None
    on_rows: Callable[[Shard, int, Sequence[Row | None]], None] = lambda _shard, _first, _rows: None
    check: Callable[[Shard], None] = lambda _shard: None


@dataclass(frozen=True, slots=True)
class Parts:
    """What every shard is made with."""

    backend: Backend
    ring: KeyRing
    trust_domain: str
    logger: structlog.typing.FilteringBoundLogger
    segment_entries: int = 1 << 20
    publish_seconds: float = 0.1
    hooks: Hooks = Hooks()
    wrapping: threading.Lock = field(default_factory=threading.Lock)
    """Held from the making of a key to its keeping, and while wrapped keys are replaced."""


class LiveShard:
    """The log that a tenant's entries go into now."""

    state: State = "current"

    def __init__(self, parts: Parts, place: Place, new_origin: Callable[[], str]) -> None:
        """Open it, or make it under `new_origin()`; raise StartupError or SealwardError.

        What fails leaves nothing open: it may be tried again.
        """
        self._parts = parts
        self.place = place
        self.closed = False
        # Replaced as a whole, by who asks the witnesses.
        self.cosigned: tuple[int, bytes] = (0, b"")
        with ExitStack() as opened:
            self.store = parts.backend.store(place)
            opened.callback(self.store.close)
            self.keys: LogKeys = open_log_keys(
                self.store, parts.ring, parts.trust_domain, new_origin
            )
            opened.callback(self.keys.index.close)
            self.name = LogName.parse(self.keys.origin)
            self.origin, self.tenant = self.keys.origin, place.tenant
            if self.name.tenant != place.tenant:
                raise StartupError(f"{place.folder} holds a log of another tenant")
            self._open(opened)
            opened.pop_all()

    def _open(self, opened: ExitStack) -> None:
        parts, hooks = self._parts, self._parts.hooks
        self.segments = Segments(
            self.store,
            parts.ring,
            self.origin,
            tenant=self.tenant,
            entries=parts.segment_entries,
            wrapping=parts.wrapping,
        )
        self.index_keys = IndexKeys(self.keys.index.use)
        self.patients = Patients(
            lambda: self.store, parts.ring, self.tenant, lambda: self.index_keys, parts.wrapping
        )
        opened.callback(self.patients.close)
        self.segments.reveal = self.patients.reveal
        self.maker = EntryMaker(self.index_keys, self.tenant, self.patients)
        self.index: Index = parts.backend.index(self.place, self.origin)
        opened.callback(self.index.close)
        self.log = Log(
            self.store,
            self.segments,
            self.index_keys,
            self.keys.signers,
            on_change=self._changed,
            on_rows=self._rows,
            on_full=hooks.on_full,
            on_broken=hooks.on_broken,
        )
        self.indexer = Indexer(
            self.index,
            self.store,
            self.segments.open,
            lambda: self.log.head[0],
            parts.logger,
            lambda first, rows: hooks.on_rows(self, first, rows),
        )
        if self.store.get(SINCE) is None:
            self.store.put([(SINCE, b"%d" % self.log.head[0])])
        sink = parts.backend.sink(self.place, self.origin)
        if not check_published(sink, parse_vkeys("\n".join(self.vkeys)), self.log):
            parts.logger.warning("publisher.torn-checkpoint")
        hooks.check(self)
        self.left = _left(sink)
        self.publisher = Publisher(
            self.log,
            self.store,
            sink,
            parts.logger,
            interval=parts.publish_seconds,
            on_published=lambda size: hooks.on_published(self, size),
        )

    @property
    def vkeys(self) -> list[str]:
        """See Shard."""
        return vkey_lines(key_state(self.store, self.keys.signers))

    def start(self) -> None:
        """Begin to publish and to index."""
        self.patients.prepare()
        self.publisher.start()
        self.indexer.start()

    def stop(self, timeout: float) -> None:
        """Publish and index what is left."""
        self.publisher.stop(timeout)
        self.indexer.stop(timeout)

    def close(self) -> None:
        """Release everything."""
        self.closed = True
        self.patients.close()
        self.keys.index.close()
        self.index.close()
        self.store.close()

    def _changed(self, size: int, _checkpoint: bytes) -> None:
        self._parts.hooks.on_size(self, size)
        self.publisher.changed()

    def _rows(self, first: int, rows: Sequence[Row | None]) -> None:
        self.indexer.committed(first, rows)


class PastShard:
    """A log that has ended. Thread-safe; parts are opened when they are asked for."""

    def __init__(self, parts: Parts, place: Place) -> None:
        """Read what names it and close it again; raise StartupError when that is damaged."""
        self._parts = parts
        self.place = place
        self._lock = threading.RLock()
        self._store: LogStore | None = None
        self._log: LogView | None = None
        self._index: Index | None = None
        self._indexer: Indexer | None = None
        self._segments: Segments | None = None
        self._keys: IndexKeys | None = None
        self._patients: Patients | None = None
        self._closers: list[Callable[[], None]] = []
        self._sealed = False
        self.refresh()

    def refresh(self) -> None:
        """Close everything and read again what names it."""
        with self._lock:
            self.close()
            self._sealed = is_sealed(self.place)
            store = self._parts.backend.store(self.place, sealed=self._sealed)
            try:
                self._read(store)
            finally:
                store.close()

    def seal(self) -> None:
        """Seal the store; from now on it is opened as one that nobody writes.

        Who asks meanwhile waits, and who had it open asks again. Raise StoreBrokenError.
        """
        with self._lock:
            self.close()
            self._parts.backend.store(self.place).seal()
            self._sealed = True

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """As LogStore.find. Raise StoreError."""
        for _ in range(_CLOSINGS):
            try:
                return self.store.find(event_ids)
            except StoreError:
                # It may have been closed between the two, as by an archiving, which does so twice.
                continue
        return self.store.find(event_ids)

    def _read(self, store: LogStore) -> None:
        origin, final, ended = (store.get(n) for n in ("origin", FINAL, FINAL_TIME))
        if origin is None or final is None or ended is None:
            raise StartupError(f"{self.place.folder} holds no log that has ended: it is damaged")
        self.name = LogName.parse(origin.decode())
        self.origin, self.tenant = self.name.origin, self.name.tenant
        self.final = final
        self.ended = int(ended)
        try:
            self.checkpoint = Checkpoint.parse(parse_note(final).text)
        except TlogError:
            raise StartupError(f"{self.place.folder} has no final checkpoint: damaged") from None
        self.vkeys = vkey_lines(key_state(store))
        self.cosigned = (
            (self.checkpoint.size, found) if (found := store.get(FINAL_COSIGNED)) else (0, b"")
        )
        self.stored_state = (store.get(STATE) or b"frozen").decode()
        # One whose keys are being destroyed opens no more.
        self.state: State = "frozen" if self.stored_state == "frozen" else "purged"
        if self.state == "frozen" and is_sealed(self.place):
            self.state = "archived"

    @property
    def store(self) -> LogStore:
        """See Shard."""
        with self._lock:
            if self._store is None:
                self._store = self._parts.backend.store(self.place, sealed=self._sealed)
                self._closers.append(self._store.close)
            return self._store

    @property
    def log(self) -> LogView:
        """See Shard. Raises StoreBrokenError when the kept hashes are not those of its root."""
        with self._lock:
            if self._log is None:
                store, end = self.store, self.checkpoint
                roots = store.get(FINAL_ROOTS) or b""
                start = len(roots) // HASH_SIZE * TILE_WIDTH
                tree = TiledTree.restored(
                    lambda tile: store.hashes(tile * TILE_WIDTH, (tile + 1) * TILE_WIDTH),
                    roots,
                    store.hashes(start, end.size),
                )
                if tree.root() != end.root:
                    raise StoreBrokenError("the hashes kept are not those of the final checkpoint")
                signed = store.get(FINAL_COSE) or b""
                self._log = LogView(store, tree, self.origin, (end.size, self.final), signed)
            return self._log

    @property
    def segments(self) -> Segments:
        """See Shard."""
        with self._lock:
            self._not_purged()
            if self._segments is None:
                self._segments = Segments(
                    self.store, self._parts.ring, self.origin, tenant=self.tenant
                )
                self._closers.append(self._segments.close)
                self._patients = Patients(
                    lambda: self.store, self._parts.ring, self.tenant, lambda: self.index_keys
                )
                self._segments.reveal = self._patients.reveal
                self._closers.append(self._patients.close)
            return self._segments

    @property
    def patients(self) -> Patients:
        """See Shard."""
        with self._lock:
            if self._patients is None:
                _ = self.segments
            if self._patients is None:
                raise StoreBrokenError("the log is being closed")
            return self._patients

    @property
    def index_keys(self) -> IndexKeys:
        """See Shard."""
        with self._lock:
            self._not_purged()
            if self._keys is None:
                key = open_index_key(self.store, self._parts.ring, self.origin)
                self._closers.append(key.close)
                self._keys = IndexKeys(key.use)
            return self._keys

    @property
    def maker(self) -> EntryMaker:
        """See Shard."""
        return EntryMaker(self.index_keys, self.tenant)

    @property
    def index(self) -> Index:
        """See Shard."""
        with self._lock:
            self._not_purged()
            if self._index is None:
                self._index = self._parts.backend.index(self.place, self.origin)
                self._closers.append(self._index.close)
            return self._index

    @property
    def indexer(self) -> Indexer:
        """See Shard."""
        with self._lock:
            if self._indexer is None:
                size = self.checkpoint.size
                index, segments = self.index, self.segments
                self._indexer = Indexer(
                    index, self.store, segments.open, lambda: size, self._parts.logger
                )
                # Also when nothing is left to index: it may have to be made anew.
                self._indexer.start()
                self._closers.append(lambda indexer=self._indexer: indexer.stop(5.0))  # type: ignore[misc]
            return self._indexer

    def close(self) -> None:
        """Release what was opened; it opens again when somebody asks."""
        with self._lock:
            while self._closers:
                self._closers.pop()()
            self._store = self._log = self._index = None
            self._indexer = self._segments = self._keys = self._patients = None

    def _not_purged(self) -> None:
        if self.state == "purged":
            raise SealwardError(
                Reason.LOG_PURGED, "the keys of this log were destroyed at the end of its retention"
            )


def _left(sink: TileSink) -> bytes:
    """Return the cosigned checkpoint that an earlier run has published; empty when there is none.

    It is only a beginning: whoever takes it up verifies it.
    """
    try:
        return sink.read(COSIGNED_PATH) or b""
    except (SinkUnavailableError, OSError):
        return b""


def is_sealed(place: Place) -> bool:
    """Return whether a place was archived: its manifest is there, and its files are read-only."""
    return place.manifest.exists()


def tile_roots(log: LogView, size: int) -> bytes:
    """Return the joined roots of the full tiles of a log, as FINAL_ROOTS keeps them."""
    return log.hashes(TILE_HEIGHT, 0, size // TILE_WIDTH)
