"""The pass over a log that `logdir` makes: derives every hash again and finds who is to blame.

Everything is derived from the entry bundles, upwards, in one pass and in constant memory. Where a
stored tile disagrees with what lies below it, the tile above it (or, at the right edge, the signed
root) says which of the two was changed, and the walk goes on with the right one. So a finding names
the entry or the file that is bad, and not all that depends on it.

A walk may go on after a checkpoint up to which the log was verified before. Then the hashes of that
time's right edge are taken from the tiles and compared with its root, and only what came later is
read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import LeafError, ProofError, TileError
from sealward.tlog.leaf import MIN_LEAF_SIZE, VERSION
from sealward.tlog.logchange import LogChange, parse_change_leaf
from sealward.tlog.merkle import HASH_SIZE, complete_root, edge_root
from sealward.tlog.tiledtree import TiledTree
from sealward.tlog.tiles import (
    CHECKPOINT_PATH,
    COSIGNED_PATH,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    parse_path,
)

MAX_FINDINGS = 100
"""Findings that are kept; more are counted."""

Reader = Callable[[str], bytes]
"""Returns the file at a path below the log's prefix; raises OSError if it cannot."""

Progress = Callable[[int, int], None]
"""Is called with the number of entries walked so far and the size of the log."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the file, and the entry (zero-based leaf index) if it is one."""

    path: str
    message: str
    entry: int | None = None

    def __str__(self) -> str:
        where = self.path if self.entry is None else f"entry {self.entry} in {self.path}"
        return f"{where} {self.message}"


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A partial tile that is not what lies below it; the signed root decides at the end."""

    tile: Tile
    derived: bytes
    stored: bytes
    tile_is_bad: Finding
    below_is_bad: Finding


class _BrokenOffError(Exception):
    """A bundle and its tile are both lost: nothing after them can be derived."""


class LogWalk:
    """Walks a log once; `findings`, `count` and the other counters are the result.

    `known` are checkpoints seen earlier, `files` the paths that exist (may be empty), `after` the
    one to go on from; see `logdir`. `changes` are the entries in clear that were met, with places.
    """

    def __init__(
        self,
        read: Reader,
        checkpoint: Checkpoint,
        known: Sequence[Checkpoint] = (),
        files: Iterable[str] = (),
        after: Checkpoint | None = None,
    ) -> None:
        self._read = read
        self._checkpoint = checkpoint
        self._size = checkpoint.size
        self._known = [k for k in known if k.origin == checkpoint.origin]
        self._after = after if after is not None and after.size else None
        self._since = self._after.size if self._after is not None else 0
        if self._after is not None:
            self._known.append(self._after)
        # Per tile level, the hashes since the last full tile: the right edge so far.
        self._edge: list[bytes] = [b""]
        self._doubts: list[_Doubt] = []
        self._doubted_bundle: tuple[Tile, bytes] | None = None
        self.findings: list[Finding] = []
        self.count = 0
        self.files = 0
        self.entry_bytes = 0
        self.unknown: list[str] = []
        self.changes: list[tuple[int, LogChange]] = []
        self.listed: dict[tuple[int | None, int], set[int]] = {}
        for path in files:
            self._list(path)

    def run(self, progress: Progress | None = None) -> None:
        """Walk the log; `progress` is called after every bundle."""
        for known in self._known:
            if known.size > self._size:
                self._add(Finding(CHECKPOINT_PATH, f"is older than a known one of {known.size}"))
        try:
            begin = self._resume(self._after) if self._after is not None else 0
            for index in range(begin, -(-self._size // TILE_WIDTH)):
                width = min(TILE_WIDTH, self._size - index * TILE_WIDTH)
                self._bundle(Tile(None, index, width))
                if progress is not None:
                    progress(index * TILE_WIDTH + width, self._size)
        except _BrokenOffError:
            return
        for level in range(1, len(self._edge)):
            derived = self._edge[level]
            if derived:
                tile = Tile(level, self._nodes(level) // TILE_WIDTH, len(derived) // HASH_SIZE)
                self._edge[level] = self._settle(tile, derived, self._stored(tile))
        self._check_root()

    def _resume(self, after: Checkpoint) -> int:
        """Take the right edge of what was verified from the tiles; return the bundle to go on with.

        The edge is compared with the root of that time here, or with the first bundle where that
        holds entries of both times.
        """
        if after.size > self._size:
            raise _BrokenOffError
        self._check_earlier(after)
        level = 1
        while have := after.size >> TILE_HEIGHT * level:
            self._edge.append(self._beginning(level, have // TILE_WIDTH, have % TILE_WIDTH))
            level += 1
        if after.size % TILE_WIDTH == 0 and edge_root(self._edge, TILE_HEIGHT) != after.root:
            self._differs(after)
            raise _BrokenOffError
        return after.size // TILE_WIDTH

    def _check_earlier(self, after: Checkpoint) -> None:
        """Compare known checkpoints that are older than what was verified."""
        earlier = [known for known in self._known if known.size < after.size]
        if not earlier:
            return
        full, rest = divmod(after.size, TILE_WIDTH)
        roots = b"".join(
            self._beginning(1, index, min(TILE_WIDTH, full - index * TILE_WIDTH))
            for index in range(-(-full // TILE_WIDTH))
        )
        tree = TiledTree.restored(
            lambda number: self._stored(Tile(0, number)) or b"",
            roots,
            self._beginning(0, full, rest),
        )
        try:
            wrong = [known for known in earlier if tree.root(known.size) != known.root]
        except ProofError:
            wrong = [after]
        if tree.root() != after.root:
            wrong = [after]
        for known in wrong:
            self._differs(known)
        if wrong:
            raise _BrokenOffError

    def _beginning(self, level: int, index: int, width: int) -> bytes:
        """Return the first hashes of a tile, as it is at the size of now."""
        if not width:
            return b""
        now = min(TILE_WIDTH, self._nodes(level) - index * TILE_WIDTH)
        stored = self._stored(Tile(level, index, now))
        if stored is None:
            raise _BrokenOffError
        return stored[: width * HASH_SIZE]

    def _differs(self, known: Checkpoint) -> None:
        message = f"is not of the same log as a known one of {known.size}"
        self._add(Finding(CHECKPOINT_PATH, message))

    def _bundle(self, bundle: Tile) -> None:
        """Hash a bundle, compare its tile, and carry the hashes upwards."""
        tile = Tile(0, bundle.index, bundle.width)
        stored = self._stored(tile)
        data = self._fetch(bundle)
        if data is None:
            if stored is None:
                raise _BrokenOffError
            self._push(tile, stored)
            return
        first = bundle.index * TILE_WIDTH
        hashes, odd, changes, end = _hash_entries(data, bundle.width)
        self.changes += [(first + at, c) for at, c in changes if first + at >= self._since]
        derived = b"".join(hashes)
        if len(hashes) < bundle.width:
            at = len(hashes) if stored is None else _first_difference(derived, stored)
            self._add(Finding(bundle.path, "does not end where its length says", first + at))
            if stored is None:
                raise _BrokenOffError
            self._push(tile, stored)
            return
        if end != len(data):
            self._add(Finding(bundle.path, "holds more than its entries"))
        settled = self._settle(tile, derived, stored)
        for at in odd:
            if hashes[at] == settled[at * HASH_SIZE : (at + 1) * HASH_SIZE]:
                self._add(Finding(bundle.path, "does not have the layout of a leaf", first + at))
        self.entry_bytes += end - 2 * len(hashes)
        if any(doubt.tile == tile for doubt in self._doubts):
            self._doubted_bundle = (bundle, data)
        elif settled == derived:
            self._check_listed(bundle, data)
        self._check_known(bundle, settled)
        self._push(tile, settled)

    def _push(self, tile: Tile, hashes: bytes) -> None:
        """Keep a partial level-0 tile as the edge; carry the root of a full one upwards."""
        if tile.width < TILE_WIDTH:
            self._edge[0] = hashes
            return
        level, index = 0, tile.index
        while True:
            level += 1
            if len(self._edge) == level:
                self._edge.append(b"")
            self._edge[level] += complete_root(hashes)
            if len(self._edge[level]) < TILE_WIDTH * HASH_SIZE:
                return
            index //= TILE_WIDTH
            full = Tile(level, index)
            hashes = self._settle(full, self._edge[level], self._stored(full))
            self._edge[level] = b""

    def _settle(self, tile: Tile, derived: bytes, stored: bytes | None) -> bytes:
        """Return the hashes to go on with; blame the tile or what is below where they differ."""
        if stored is None or stored == derived:
            settled = derived
        elif tile.width == TILE_WIDTH:
            settled = self._judge(tile, derived, stored)
        else:
            self._doubts.append(_Doubt(tile, derived, stored, *_blame(tile, derived, stored)))
            return derived
        self._check_listed(tile, settled)
        return settled

    def _judge(self, tile: Tile, derived: bytes, stored: bytes) -> bytes:
        """Return the right side of a full tile that differs, as the tile above it tells."""
        tile_is_bad, below_is_bad = _blame(tile, derived, stored)
        above = self._hash_above(tile)
        if above == complete_root(derived):
            self._add(tile_is_bad)
            return derived
        self._add(below_is_bad)
        return stored if above == complete_root(stored) else derived

    def _check_root(self) -> None:
        """Compare the root; where partial tiles are in doubt, find which side leads to it."""
        for choice in product((False, True), repeat=len(self._doubts)):
            edge = list(self._edge)
            for doubt, below in zip(self._doubts, choice, strict=True):
                edge[doubt.tile.level or 0] = doubt.stored if below else doubt.derived
            if edge_root(edge, TILE_HEIGHT) == self._checkpoint.root:
                for doubt, below in zip(self._doubts, choice, strict=True):
                    self._resolve(doubt, below=below)
                return
        for doubt in self._doubts:
            self._add(doubt.below_is_bad)
        self._add(Finding(CHECKPOINT_PATH, "has a root that the entries do not lead to"))

    def _resolve(self, doubt: _Doubt, *, below: bool) -> None:
        self._add(doubt.below_is_bad if below else doubt.tile_is_bad)
        self._check_listed(doubt.tile, doubt.stored if below else doubt.derived)
        if doubt.tile.level == 0 and not below and self._doubted_bundle is not None:
            self._check_listed(*self._doubted_bundle)

    def _check_known(self, bundle: Tile, hashes: bytes) -> None:
        """Compare the roots of known checkpoints whose size falls into this bundle."""
        first = bundle.index * TILE_WIDTH
        for known in self._known:
            if first < known.size <= first + bundle.width:
                edge = [hashes[: (known.size - first) * HASH_SIZE], *self._edge[1:]]
                if edge_root(edge, TILE_HEIGHT) != known.root:
                    self._differs(known)

    def _check_listed(self, tile: Tile, content: bytes) -> None:
        """Compare other partial files of a tile or bundle: each is a beginning of its content."""
        widths = self.listed.get((tile.level, tile.index), set())
        for width in sorted(w for w in widths if w <= tile.width):
            widths.remove(width)
            if width == tile.width:
                continue
            partial = Tile(tile.level, tile.index, width)
            try:
                data = self._read(partial.path)
            except OSError:
                continue  # A log that is being written to may delete it meanwhile.
            self.files += 1
            end = _bundle_end(content, width) if tile.level is None else width * HASH_SIZE
            if data != content[:end]:
                self._add(Finding(partial.path, "is not a beginning of what came after it"))
        if not widths:
            self.listed.pop((tile.level, tile.index), None)

    def _stored(self, tile: Tile) -> bytes | None:
        """Read a hash tile; None, with a finding, if it is missing or of a wrong length."""
        data = self._fetch(tile)
        if data is not None and len(data) != tile.width * HASH_SIZE:
            self._add(Finding(tile.path, "does not have the length of its hashes"))
            return None
        return data

    def _fetch(self, tile: Tile) -> bytes | None:
        """Read a file; a partial one may have given way to the full one meanwhile."""
        self.files += 1
        try:
            return self._read(tile.path)
        except FileNotFoundError:
            message = "is missing"
        except OSError:
            message = "cannot be read"
        if tile.width < TILE_WIDTH:
            try:
                data = self._read(Tile(tile.level, tile.index).path)
            except OSError:
                pass
            else:
                return (
                    data[: _bundle_end(data, tile.width)]
                    if tile.level is None
                    else data[: tile.width * HASH_SIZE]
                )
        self._add(Finding(tile.path, message))
        return None

    def _hash_above(self, tile: Tile) -> bytes | None:
        """Return the hash of a full tile as the tile above it has it."""
        level, index = (tile.level or 0) + 1, tile.index // TILE_WIDTH
        width = min(TILE_WIDTH, self._nodes(level) - index * TILE_WIDTH)
        try:
            data = self._read(Tile(level, index, width).path)
        except OSError:
            return None
        at = tile.index % TILE_WIDTH * HASH_SIZE
        return data[at : at + HASH_SIZE]

    def _nodes(self, level: int) -> int:
        """Return the number of hashes at a tile level."""
        return self._size >> (TILE_HEIGHT * level)

    def _list(self, path: str) -> None:
        try:
            tile = parse_path(path)
        except TileError:
            if path not in {CHECKPOINT_PATH, COSIGNED_PATH}:
                self.unknown.append(path)
            return
        self.listed.setdefault((tile.level, tile.index), set()).add(tile.width)

    def _add(self, finding: Finding) -> None:
        self.count += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)


def _blame(tile: Tile, derived: bytes, stored: bytes) -> tuple[Finding, Finding]:
    """Return both stories of a difference: the tile was changed, or what lies below it."""
    node = tile.index * TILE_WIDTH + _first_difference(derived, stored)
    tile_is_bad = Finding(tile.path, "does not hold the hashes of what lies below it")
    if tile.level:
        child = Tile(tile.level - 1, node)
        return tile_is_bad, Finding(child.path, f"and all below it do not match {tile.path}")
    bundle = Tile(None, tile.index, tile.width)
    return tile_is_bad, Finding(bundle.path, f"does not match its hash in {tile.path}", node)


def _hash_entries(
    data: bytes, width: int
) -> tuple[list[bytes], list[int], list[tuple[int, LogChange]], int]:
    """Return the leaf hashes of a bundle, what is odd in it, and where it ended.

    Odd are positions without leaf layout, and entries in clear with their positions. Fewer hashes
    than `width` mean that the bundle ends within an entry.
    """
    hashes: list[bytes] = []
    odd: list[int] = []
    changes: list[tuple[int, LogChange]] = []
    at, size = 0, len(data)
    for position in range(width):
        begin = at + 2
        if begin > size:
            break
        end = begin + (data[at] << 8 | data[at + 1])
        if end > size:
            break
        if end - begin < MIN_LEAF_SIZE or data[begin] != VERSION:
            change = _change_of(data[begin:end])
            if change is None:
                odd.append(position)
            else:
                changes.append((position, change))
        hashes.append(sha256(b"\x00" + data[begin:end]).digest())
        at = end
    return hashes, odd, changes, at


def _change_of(entry: bytes) -> LogChange | None:
    """Return what an entry in clear changes of the log; None for any other."""
    try:
        return parse_change_leaf(entry)[1]
    except LeafError:
        return None


def _bundle_end(data: bytes, width: int) -> int:
    """Return the length of the first `width` entries of a bundle, or all of it if it has fewer."""
    at = 0
    for _ in range(width):
        at += 2 + int.from_bytes(data[at : at + 2])
    return at


def _first_difference(left: bytes, right: bytes) -> int:
    """Return the position of the first hash that differs; the shorter length if none does."""
    for at in range(0, min(len(left), len(right)), HASH_SIZE):
        if left[at : at + HASH_SIZE] != right[at : at + HASH_SIZE]:
            return at // HASH_SIZE
    return min(len(left), len(right)) // HASH_SIZE
