"""The log: candidates in, places with proofs out. One batch is one transaction and one signature.

The order is what the promises rest on: seal, extend the tree on paper, commit entries and tree head
in one transaction, and only when that is on the disk extend the tree in memory, sign the head and
answer. So nothing is ever signed that is not durable, and a commit that fails leaves no trace.
Ed25519 is deterministic: the signed checkpoint of a stored head is the same bytes whenever it is
made, so the head is all that has to be stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.cose import format_receipt, sign_root
from sealward.tlog.errors import CoseError, ProofError
from sealward.tlog.leaf import EVENT_ID_SIZE
from sealward.tlog.merkle import EMPTY_ROOT, leaf_hash, leaf_hashes
from sealward.tlog.note import Ed25519Signer, parse_note
from sealward.tlog.tiledtree import TiledTree
from sealward.tlog.tiles import TILE_WIDTH
from services.audit.digests import IndexKeys
from services.audit.entry import Candidate
from services.audit.index import Row
from services.audit.segments import Segments
from services.audit.store import EventKey, Head, LogStore, StoreBrokenError, StoreFullError

_LOAD = 4096
# As much as a batch needs: a few bytes find room where no batch does.
_PROBE_BYTES = 256 << 10


@dataclass(slots=True)
class Placed:
    """Where an entry stands. `path` is its inclusion proof, joined. `repeated`: it was there.

    `checkpoint` is what the path refers to where that is not the one of the whole batch: the entry
    is in another log than the rest.
    """

    index: int
    leaf: bytes
    path: bytes
    repeated: bool = False
    checkpoint: bytes = b""


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a batch: for each candidate its place or its error, in order.

    `checkpoint` is the signed checkpoint that all the paths refer to.
    """

    results: list[Placed | SealwardError]
    checkpoint: bytes
    conflicts: list[int] = field(default_factory=list)
    added: int = 0


class _Turns:
    """One at a time; who is urgent goes first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy = False
        self._urgent = 0

    def take(self, *, urgent: bool) -> None:
        with self._condition:
            self._urgent += urgent
            self._condition.wait_for(lambda: not self._busy and (urgent or not self._urgent))
            self._urgent -= urgent
            self._busy = True

    def give(self) -> None:
        with self._condition:
            self._busy = False
            self._condition.notify_all()


class LogEndedError(Exception):
    """The log has its last entry: nothing follows it here. Carries no data."""


class LogView:
    """What a log answers about itself, whether it still grows or not. Thread-safe."""

    def __init__(
        self,
        store: LogStore,
        tree: TiledTree,
        origin: str,
        head: tuple[int, bytes],
        final_root: bytes = b"",
    ) -> None:
        """Take a tree and the head (size, signed checkpoint) that belongs to it.

        `final_root` is what was kept of `signed_root` when the log ended.
        """
        self._store = store
        self._tree = tree
        self._origin = origin
        # One value, replaced as a whole: readers see size and checkpoint that belong together.
        self._head = head
        self._final_root = final_root

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._origin

    @property
    def head(self) -> tuple[int, bytes]:
        """The newest size and its signed checkpoint."""
        return self._head

    def receipt(
        self, event_id: bytes, cosigned: tuple[int, bytes] | None = None
    ) -> tuple[Placed, bytes]:
        """Return place and checkpoint of an event; raise SealwardError NOT_FOUND or StoreError.

        With `cosigned` (size, checkpoint) against that one; NOT_COSIGNED where it does not cover
        the event.
        """
        found = self._store.find((event_id,)).get(event_id)
        if found is None or found[0] >= self._head[0]:
            raise SealwardError(Reason.NOT_FOUND, "no such event", field="event_id")
        size, checkpoint = self._head if cosigned is None else cosigned
        if found[0] >= size:
            raise SealwardError(
                Reason.NOT_COSIGNED, "no cosigned checkpoint covers this event yet", retry_after=1.0
            )
        return self.placed(found[0], size), checkpoint

    def consistency(self, old: int, new: int) -> bytes:
        """Return the consistency proof between two sizes, joined.

        Raise SealwardError for sizes that cannot be, StoreError for a store that cannot be read.
        """
        if not 0 <= old <= new <= self._head[0]:
            raise SealwardError(
                Reason.FIELD_INVALID, "sizes rise and are not above the log's", field="sizes"
            )
        try:
            return b"".join(self._tree.consistency(old, new))
        except ProofError:
            raise StoreBrokenError("stored hashes were changed") from None

    def root(self, size: int) -> bytes:
        """Return the root over the first `size` entries; raise IndexError beyond the log."""
        return self._tree.root(size)

    def hashes(self, level: int, start: int, end: int) -> bytes:
        """Return the joined nodes [start, end) of a tree level, as tiles hold them."""
        return self._tree.nodes(level, start, end)

    def cose(self, placed: Placed, checkpoint: bytes) -> bytes:
        """Return the COSE receipt of a place against its checkpoint; raise SealwardError."""
        head = Checkpoint.parse(parse_note(checkpoint).text)
        signed = self.signed_root(checkpoint)
        try:
            return format_receipt(self._origin, signed, head.size, placed.index, placed.path)
        except CoseError:
            raise _no_cose("a log of one entry has no COSE receipt") from None

    def signed_root(self, checkpoint: bytes) -> bytes:
        """Return what `cose.sign_root` gives for a checkpoint's root; raise SealwardError.

        A log that has ended has it for its final checkpoint alone: its key signs no more.
        """
        text = parse_note(self._head[1]).text
        if not self._final_root or parse_note(checkpoint).text != text:
            raise _no_cose("this log has ended: its key signed its final tree alone")
        return self._final_root

    def placed(self, index: int, size: int, *, repeated: bool = False) -> Placed:
        """Return the place of an entry in the tree of a size; raise StoreError."""
        leaf = self._store.leaves(index, index + 1)[0]
        try:
            (path,) = self._tree.inclusions(index, index + 1, size)
        except ProofError:
            raise StoreBrokenError("stored hashes were changed") from None
        return Placed(index, leaf, path, repeated)


class Log(LogView):
    """A log that grows. Thread-safe.

    `on_change` is told of each new head (size, checkpoint); `on_rows` of the rows of each batch
    (index of the first, rows), in the order of the log and when they are durable; `on_full`
    whether the disk is full; `on_broken` once, when the store failed for good: the process has to
    stop then.
    """

    def __init__(
        self,
        store: LogStore,
        segments: Segments,
        keys: IndexKeys,
        signers: Sequence[Ed25519Signer],
        *,
        ended: bool = False,
        on_change: Callable[[int, bytes], None] = lambda _size, _checkpoint: None,
        on_rows: Callable[[int, Sequence[Row | None]], None] = lambda _first, _rows: None,
        on_full: Callable[[bool], None] = lambda _full: None,
        on_broken: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """Rebuild the tree from the store; raise StartupError when it is not the committed one."""
        tree = load_tree(store)
        super().__init__(store, tree, signers[0].name, (0, b""))
        self._segments = segments
        self._keys = keys
        self._signers = tuple(signers)
        self._ended = ended
        self._on_change = on_change
        self._on_rows = on_rows
        self._on_full = on_full
        self._on_broken = on_broken
        self._turns = _Turns()
        self._broken = False
        self._full = False
        self._head = (tree.size, self._sign(tree.size, tree.root()))

    @property
    def full(self) -> bool:
        """True while the disk takes nothing."""
        return self._full

    def append(
        self, candidates: Sequence[Candidate], *, urgent: bool = False, proofs: bool = True
    ) -> Committed:
        """Append a batch and return when it is durable. `urgent`: an answer waits for it.

        Each result is a Placed or the SealwardError ALREADY_EXISTS of an id that is taken by
        another event. Without `proofs` the paths of new entries are empty. For errors of the whole
        batch raise SealwardError AUDIT_UNAVAILABLE or KEYS_UNAVAILABLE, LogEndedError after the
        last entry: then nothing of it is in the log.
        """
        with self._turn(urgent=urgent):
            if self._ended:
                raise LogEndedError
            return self._append(candidates, proofs=proofs)

    def change(
        self,
        leaf: bytes,
        *,
        signers: Sequence[Ed25519Signer] | None = None,
        ends: bool = False,
    ) -> tuple[int, bytes]:
        """Append an entry in clear that changes the log, unless it is there; return the head.

        From its checkpoint on `signers` sign, the origin's own first; with `ends` it is the last
        entry. Raise as `append`.
        """
        with self._turn(urgent=True):
            event_id = leaf[1 : 1 + EVENT_ID_SIZE]
            if event_id not in self._store.find((event_id,)):
                if self._ended:
                    raise LogEndedError
                self._signers = tuple(signers or self._signers)
                # Its id is drawn here and its text public: there is no fingerprint to hide.
                key = EventKey(event_id, leaf_hash(leaf)[:16])
                self._commit(self._tree.size, [leaf], [key], [None])
            self._ended = self._ended or ends
            return self._head

    def sign_with(self, signers: Sequence[Ed25519Signer]) -> None:
        """Let others sign from the newest checkpoint on: keys that the log has announced."""
        with self._turn(urgent=True):
            self._signers = tuple(signers)
            size = self._tree.size
            self._head = (size, self._sign(size, self._tree.root()))
            self._on_change(*self._head)

    @contextmanager
    def _turn(self, *, urgent: bool) -> Iterator[None]:
        self._turns.take(urgent=urgent)
        try:
            if self._broken:
                raise _unavailable("the audit log has failed")
            yield
        except StoreFullError:
            self._set_full(full=True)
            raise _unavailable("the disk of the audit log is full") from None
        except StoreBrokenError as error:
            self._broken = True
            self._on_broken(str(error))
            raise _unavailable("the audit log has failed") from None
        finally:
            self._turns.give()

    def signed_root(self, checkpoint: bytes) -> bytes:
        """See LogView. The checkpoint is one of this log's own."""
        return sign_root(self._signers[0], Checkpoint.parse(parse_note(checkpoint).text).root)

    def probe(self) -> None:
        """Find out whether a full disk has space again; quiet otherwise."""
        if self._full:
            self._turns.take(urgent=False)
            try:
                self._store.put([("probe", bytes(_PROBE_BYTES))])
                self._store.put([("probe", b"")])
                self._set_full(full=False)
            except StoreFullError:
                pass
            except StoreBrokenError as error:
                self._broken = True
                self._on_broken(str(error))
            finally:
                self._turns.give()

    def _append(self, candidates: Sequence[Candidate], *, proofs: bool) -> Committed:
        self._keys.check()
        ids = [c.key.event_id for c in candidates]
        known = self._store.find(ids)
        if known or len(set(ids)) < len(ids):
            return self._append_unknown(candidates, known, proofs=proofs)
        first = self._tree.size
        leaves = self._store_new(first, candidates) if candidates else []
        size, checkpoint = self._head
        places = map(Placed, range(first, size), leaves, self._paths(first, size, proofs=proofs))
        return Committed(list(places), checkpoint, [], len(leaves))

    def _append_unknown(
        self,
        candidates: Sequence[Candidate],
        known: dict[bytes, tuple[int, bytes]],
        *,
        proofs: bool,
    ) -> Committed:
        """Append those whose ids are not `known` (index and fingerprint of stored ones)."""
        first = self._tree.size
        fresh: list[Candidate] = []
        places: list[int] = []
        for candidate in candidates:
            key = candidate.key
            index, fingerprint = known.get(key.event_id, (-1, b""))
            if index < 0:
                index = first + len(fresh)
                fresh.append(candidate)
                # The same id twice in one batch is known from here on.
                known[key.event_id] = (index, key.fingerprint)
            elif fingerprint != key.fingerprint:
                index = -1
            places.append(index)
        leaves = self._store_new(first, fresh) if fresh else []
        size, checkpoint = self._head
        paths = self._paths(first, size, proofs=proofs)
        results: list[Placed | SealwardError] = []
        used: set[int] = set()
        for index in places:
            if index < 0:
                results.append(
                    SealwardError(Reason.ALREADY_EXISTS, "this event id is taken", field="event_id")
                )
            elif index >= first:
                at = index - first
                results.append(Placed(index, leaves[at], paths[at], index in used))
                used.add(index)
            else:
                results.append(self.placed(index, size, repeated=True))
        conflicts = [n for n, index in enumerate(places) if index < 0]
        return Committed(results, checkpoint, conflicts, len(fresh))

    def _paths(self, first: int, size: int, *, proofs: bool) -> list[bytes]:
        if first == size or not proofs:
            return [b""] * (size - first)
        return self._tree.inclusions(first, size, size)

    def _store_new(self, first: int, fresh: Sequence[Candidate]) -> list[bytes]:
        sealed = self._segments.seal_all([(c.prefix, c.span) for c in fresh])
        leaves = [c.prefix + s for c, s in zip(fresh, sealed, strict=True)]
        self._commit(first, leaves, [c.key for c in fresh], [c.row for c in fresh])
        return leaves

    def _commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        keys: Sequence[EventKey],
        rows: Sequence[Row | None],
    ) -> None:
        # The disk begins to write while they are hashed.
        self._store.begin(first, leaves)
        hashes = leaf_hashes(leaves)
        size = first + len(leaves)
        growth = self._tree.grown(hashes)
        self._store.commit(first, leaves, hashes, keys, Head(size, growth.root))
        self._tree.adopt(growth)
        self._head = (size, self._sign(size, growth.root))
        if self._full:
            self._set_full(full=False)
        self._on_rows(first, rows)
        self._on_change(*self._head)

    def _sign(self, size: int, root: bytes) -> bytes:
        return sign_checkpoint(Checkpoint(self._origin, size, root), self._signers)

    def _set_full(self, *, full: bool) -> None:
        if full is not self._full:
            self._full = full
            self._on_full(full)


def load_tree(store: LogStore) -> TiledTree:
    """Rebuild the tree from every leaf in the store.

    Raise StartupError when it is not the tree whose head was committed last: signing on from
    another one would fork the log.
    """
    head = store.head() or Head(0, EMPTY_ROOT)
    tree = TiledTree(lambda tile: store.hashes(tile * TILE_WIDTH, (tile + 1) * TILE_WIDTH))
    try:
        for start in range(0, head.size, _LOAD):
            leaves = store.leaves(start, min(start + _LOAD, head.size))
            tree.append(leaf_hashes(leaves))
    except StoreBrokenError as error:
        raise StartupError(f"the audit store cannot be read: {error}") from None
    if tree.root() != head.root:
        raise StartupError(
            f"the audit store was changed: its {head.size} entries do not give the committed root"
        )
    return tree


def _no_cose(message: str) -> SealwardError:
    return SealwardError(Reason.NOT_SUPPORTED, message, field="cose")


def _unavailable(message: str) -> SealwardError:
    return SealwardError(Reason.AUDIT_UNAVAILABLE, message, retry_after=1.0)
