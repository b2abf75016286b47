"""An append-only tree that keeps only its right edge and its upper levels in memory.

The lower eight levels of a full tile (256 leaves) are dropped once it is full; their root stays.
What is asked of an old tile is computed again from its leaf hashes, which the owner loads, and
compared with that root. A million leaves cost about a megabyte here, 64 in `merkle.Tree`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from sealward.tlog.errors import ProofError
from sealward.tlog.merkle import EMPTY_ROOT, HASH_SIZE, Tree, node_hash
from sealward.tlog.tiles import TILE_HEIGHT, TILE_WIDTH

Load = Callable[[int], bytes]
"""Returns the joined 256 leaf hashes of a full tile."""

_LEVELS = range(TILE_HEIGHT)
_PAIR = 2 * HASH_SIZE
_PAIRS = range(0, TILE_WIDTH * HASH_SIZE, _PAIR)
_EMPTY: Sequence[bytes] = (b"",) * TILE_HEIGHT
_CACHED = 256


@dataclass(frozen=True, slots=True)
class Growth:
    """A tree with more leaves, on paper: see `TiledTree.grown`.

    `tiles` are the nodes that come to each tile it touches, level by level; `roots` those of the
    tiles that become full. `before` and `size` count leaves.
    """

    before: int
    size: int
    root: bytes
    tiles: Sequence[Sequence[bytes]]
    roots: Sequence[bytes]


class TiledTree:
    """The same answers as `merkle.Tree`, whose documentation holds for each method here.

    `load` brings back leaf hashes; it may raise what it wants, and ProofError is raised when its
    answer is not of this tree. One thread appends; others may meanwhile ask for sizes that they
    have seen. `cached` full tiles (16 KiB each) are kept at hand.
    """

    __slots__ = ("_cache", "_cached", "_edge", "_load", "_lock", "_part", "_size", "_upper")

    def __init__(self, load: Load, cached: int = _CACHED) -> None:
        self._load = load
        self._cached = cached
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, Sequence[bytes]] = OrderedDict()
        # Level 0 of this tree is level 8 of the whole.
        self._upper = Tree()
        # The tile that is not full yet: its number, and its nodes level by level.
        self._part: tuple[int, list[bytearray]] = (0, [bytearray() for _ in _LEVELS])
        self._size = 0
        self._edge: tuple[int, list[bytes]] = (0, [EMPTY_ROOT])

    @classmethod
    def restored(cls, load: Load, roots: bytes, part: bytes, cached: int = _CACHED) -> "TiledTree":
        """Return the tree whose full tiles have these roots, followed by these leaf hashes.

        Both joined; `part` is less than a tile. Nothing is loaded. Whether it is the right tree
        the caller sees by its root. Raises ValueError for values that cannot be.
        """
        if len(roots) % HASH_SIZE or len(part) % HASH_SIZE or len(part) >= TILE_WIDTH * HASH_SIZE:
            raise ValueError("joined hashes of another length")
        tree = cls(load, cached)
        tree._upper.append(_split(roots))
        full = len(roots) // HASH_SIZE
        tree._part = (full, [bytearray() for _ in _LEVELS])
        tree._size = full * TILE_WIDTH
        tree.append(_split(part))
        return tree

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._size

    def append(self, leaf_hashes: Iterable[bytes]) -> int:
        """Append leaf hashes in order and return the new size; ValueError as in Tree."""
        self.adopt(self.grown(list(leaf_hashes)))
        return self._size

    def grown(self, hashes: Sequence[bytes]) -> Growth:
        """Return what the tree becomes with these leaf hashes appended; ValueError as in Tree.

        Nothing changes, so that the new root can be made durable first. `adopt` is the second half.
        """
        if {*map(len, hashes)} - {HASH_SIZE}:
            raise ValueError("a leaf hash is 32 bytes long")
        levels: Sequence[bytes | bytearray] = self._part[1]
        tiles: list[list[bytes]] = []
        roots: list[bytes] = []
        at = 0
        while at < len(hashes):
            room = TILE_WIDTH - len(levels[0]) // HASH_SIZE
            some = hashes[at : at + room]
            tiles.append(_added(levels, b"".join(some)))
            at += room
            if len(some) == room:
                top = bytes(levels[-1]) + tiles[-1][-1]
                roots.append(node_hash(top[:HASH_SIZE], top[HASH_SIZE:]))
                levels = _EMPTY
        size = self._size + len(hashes)
        root = self._grown_root(size, roots, levels, tiles)
        return Growth(self._size, size, root, tiles, roots)

    def adopt(self, growth: Growth) -> None:
        """Become what `grown` returned; ValueError for what is of a tree of another size."""
        if growth.before != self._size:
            raise ValueError("the tree has grown meanwhile")
        full = len(growth.roots)
        for order, added in enumerate(growth.tiles):
            number, levels = self._part
            for level, nodes in enumerate(added):
                levels[level] += nodes
            if order < full:
                # The root first: whoever looks for the tile finds it in one place or the other.
                self._upper.append((growth.roots[order],))
                self._keep(number, [bytes(level) for level in levels])
                self._part = (number + 1, [bytearray() for _ in _LEVELS])
        self._size = growth.size

    def _grown_root(
        self,
        size: int,
        roots: Sequence[bytes],
        levels: Sequence[bytes | bytearray],
        tiles: Sequence[Sequence[bytes]],
    ) -> bytes:
        """Return the root of `size` leaves from the complete subtrees under the right edge."""
        upper = self._upper.size
        edge = [
            (level, self._upper.node(level, (upper >> level) - 1))
            for level in range(upper.bit_length() - 1, -1, -1)
            if upper >> level & 1
        ]
        for root in roots:
            level, node = 0, root
            while edge and edge[-1][0] == level:
                node = node_hash(edge.pop()[1], node)
                level += 1
            edge.append((level, node))
        peaks = [node for _, node in edge]
        width = size % TILE_WIDTH
        # What comes to the tile that is not full; nothing where the last one that grew is full.
        added = tiles[-1] if len(tiles) > len(roots) else _EMPTY
        for level in reversed(_LEVELS):
            if width >> level & 1:
                at = ((width >> level) - 1) * HASH_SIZE - len(levels[level])
                found = added[level][at:] if at >= 0 else levels[level][at:]
                peaks.append(bytes(found[:HASH_SIZE]))
        if not peaks:
            return EMPTY_ROOT
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree; raises IndexError."""
        if level < 0 or index < 0 or (index + 1) << level > self._size:
            raise IndexError("no such node in the tree")
        return self._node(level, index)

    def nodes(self, level: int, start: int, end: int) -> bytes:
        """Return the joined hashes of the nodes [start, end) of a level; raises IndexError."""
        if level < 0 or not 0 <= start <= end or end << level > self._size:
            raise IndexError("no such nodes in the tree")
        if level >= TILE_HEIGHT:
            return self._upper.nodes(level - TILE_HEIGHT, start, end)
        per_tile = TILE_WIDTH >> level
        parts = []
        while start < end:
            tile, first = divmod(start, per_tile)
            last = min(per_tile, first + end - start)
            parts.append(bytes(self._tile(tile)[level][first * HASH_SIZE : last * HASH_SIZE]))
            start += last - first
        return b"".join(parts)

    def root(self, size: int | None = None) -> bytes:
        """Return the root at `size` (default: now); raises IndexError beyond the tree."""
        return self._edge_of(self._size if size is None else size)[-1]

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion path of a leaf; raises IndexError."""
        joined = self.inclusions(index, index + 1, size)[0]
        return [joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE)]

    def inclusions(self, start: int, end: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion paths of the leaves [start, end), each joined; raises IndexError."""
        if size is None:
            size = self._size
        if not 0 <= start < end <= size:
            raise IndexError("no such leaves in the tree")
        edge = self._edge_of(size)
        paths: list[bytes] = []
        for tile in range(start // TILE_WIDTH, (end - 1) // TILE_WIDTH + 1):
            begin = tile * TILE_WIDTH
            paths += self._in_tile(
                tile, max(start, begin), min(end, begin + TILE_WIDTH), size - 1, edge
            )
        return paths

    def consistency(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes; raises IndexError beyond the tree."""
        if new_size is None:
            new_size = self._size
        if not 0 <= old_size <= new_size <= self._size:
            raise IndexError("no such sizes in the tree")
        if old_size in {0, new_size}:
            return []
        edge = self._edge_of(new_size)
        node, last, level = old_size - 1, new_size - 1, 0
        while node & 1:
            node, last, level = node >> 1, last >> 1, level + 1
        proof = [self._at(level, node, last, edge)] if node else []
        while last:
            if node & 1:
                proof.append(self._at(level, node - 1, last, edge))
            elif node < last:
                proof.append(self._at(level, node + 1, last, edge))
            node, last, level = node >> 1, last >> 1, level + 1
        return proof

    def _in_tile(
        self, tile: int, start: int, end: int, last: int, edge: Sequence[bytes]
    ) -> list[bytes]:
        """Return the paths of leaves of one tile. `last` is the last leaf of the tree."""
        above = []
        node, right, level = tile, last >> TILE_HEIGHT, TILE_HEIGHT
        while right:
            if node & 1 or node < right:
                sibling = node ^ 1
                above.append(edge[level] if sibling == right else self._node(level, sibling))
            node, right, level = node >> 1, right >> 1, level + 1
        paths = [b"".join(above)]
        first = tile
        levels = self._tile(tile)
        # Down from the tile's root: a node's path is its sibling and the path of its parent.
        for level in reversed(_LEVELS):
            hashes = levels[level]
            offset = tile * (TILE_WIDTH >> level)
            right = last >> level
            low, high = start >> level, (end - 1) >> level
            current: list[bytes] = []
            # Pairs that are whole and left of the edge: both paths from one parent, without asking.
            if not low & 1 and (whole := min(high + 1, right) & ~1) > low:
                begin, stop = (low - offset) * HASH_SIZE, (whole - offset) * HASH_SIZE
                joined = bytes(hashes[begin:stop])
                for at, parent in zip(range(0, stop - begin, _PAIR), paths, strict=False):
                    middle = at + HASH_SIZE
                    current += (joined[middle : at + _PAIR] + parent, joined[at:middle] + parent)
                low = whole
            for node in range(low, high + 1):
                sibling = node ^ 1
                parent = paths[(node >> 1) - first]
                if sibling < right:
                    at = (sibling - offset) * HASH_SIZE
                    current.append(bytes(hashes[at : at + HASH_SIZE]) + parent)
                elif sibling == right:
                    current.append(edge[level] + parent)
                else:
                    current.append(parent)
            paths, first = current, start >> level
        return paths

    def _at(self, level: int, index: int, last: int, edge: Sequence[bytes]) -> bytes:
        return edge[level] if index == last else self.node(level, index)

    def _node(self, level: int, index: int) -> bytes:
        if level >= TILE_HEIGHT:
            return self._upper.node(level - TILE_HEIGHT, index)
        tile, within = divmod(index, TILE_WIDTH >> level)
        at = within * HASH_SIZE
        return bytes(self._tile(tile)[level][at : at + HASH_SIZE])

    def _tile(self, number: int) -> Sequence[bytes | bytearray]:
        """Return the nodes of a tile, level by level, loading them if need be."""
        part = self._part
        if part[0] == number:
            return part[1]
        with self._lock:
            found = self._cache.get(number)
            if found is not None:
                self._cache.move_to_end(number)
                return found
        levels = _added(_EMPTY, self._load(number))
        top = levels[-1]
        known = self._upper.node(0, number)
        if len(levels[0]) != TILE_WIDTH * HASH_SIZE or known != node_hash(
            top[:HASH_SIZE], top[HASH_SIZE:]
        ):
            raise ProofError("loaded hashes are not those of the tree")
        self._keep(number, levels)
        return levels

    def _keep(self, number: int, levels: Sequence[bytes]) -> None:
        with self._lock:
            self._cache[number] = levels
            while len(self._cache) > self._cached:
                self._cache.popitem(last=False)

    def _edge_of(self, size: int) -> list[bytes]:
        """Return, from level 0 up to the root, the hash of the last subtree of each level."""
        cached, edge = self._edge
        if cached == size:
            return edge
        if not 0 <= size <= self._size:
            raise IndexError("no such size of the tree")
        if size == 0:
            return [EMPTY_ROOT]
        last = size - 1
        current = self._node(0, last)
        edge = [current]
        level = 0
        while last:
            if last & 1:
                current = node_hash(self._node(level, last - 1), current)
            last >>= 1
            level += 1
            edge.append(current)
        self._edge = (size, edge)
        return edge


def _split(joined: bytes) -> list[bytes]:
    return [joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE)]


def _added(levels: Sequence[bytes | bytearray], nodes: bytes) -> list[bytes]:
    """Return what comes to each level of a tile with these nodes appended to its lowest."""
    added = [nodes]
    for level in _LEVELS[:-1]:
        # A node that has no parent yet waits for its sibling.
        begin = len(levels[level + 1]) * 2
        nodes = bytes(levels[level][begin:]) + nodes
        whole = len(nodes) // _PAIR * _PAIR
        nodes = b"".join(
            [sha256(b"\x01" + nodes[i : i + _PAIR]).digest() for i in _PAIRS[: whole // _PAIR]]
        )
        added.append(nodes)
    return added
