"""Merkle tree hashing and proofs (RFC 6962 section 2.1; verification as in RFC 9162 section 2.1).

A hash is 32 bytes (SHA-256). A *path* is a sequence of such hashes from the leaf's sibling up to
the root's child. A *node* is addressed by (level, index): it is the root of the complete subtree
over the leaves [index * 2**level, (index + 1) * 2**level).
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from hmac import compare_digest

from sealward.tlog.errors import ProofError

HASH_SIZE = 32
"""Bytes of a hash."""

EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 || entry)."""
    return sha256(b"\x00" + entry).digest()


def leaf_hashes(entries: Iterable[bytes]) -> list[bytes]:
    """Return the leaf hash of each entry."""
    # A copy of the state after the first byte costs less than a longer copy of the entry.
    begun = sha256(b"\x00").copy
    found = []
    for entry in entries:
        state = begun()
        state.update(entry)
        found.append(state.digest())
    return found


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def split_hashes(joined: bytes) -> list[bytes]:
    """Split joined 32-byte hashes; raises ProofError if the length is not a multiple of 32."""
    if len(joined) % HASH_SIZE:
        raise ProofError("joined hashes are not a multiple of 32 bytes")
    return [joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE)]


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162 section 2.1.3.2).

    `leaf` is the leaf's hash. Raises ProofError if `index` is not in a tree of `size` leaves or the
    path has not exactly the length that the tree asks for.
    """
    if not 0 <= index < size:
        raise ProofError("leaf index is outside of the tree")
    _check_hashes(leaf, *path)
    sides = _sides(index, size - 1)
    if len(sides) != len(path):
        raise ProofError("inclusion proof is too long or too short")
    for sibling_is_left, sibling in zip(sides, path, strict=True):
        leaf = node_hash(sibling, leaf) if sibling_is_left else node_hash(leaf, sibling)
    return leaf


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf with hash `leaf` is at `index` in the tree (`size`, `root`).

    Returns nothing; raises ProofError if it is not shown.
    """
    if not compare_digest(root_from_inclusion(leaf, index, size, path), root):
        raise ProofError("inclusion proof leads to another root")


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check that the tree (`new_size`, `new_root`) begins with (`old_size`, `old_root`).

    RFC 9162 section 2.1.4.2. Equal sizes need equal roots and an empty proof; every tree is
    consistent with the empty one. Returns nothing; raises ProofError if it is not shown.
    """
    _check_hashes(old_root, new_root, *proof)
    _check_heads(old_size, new_size, old_root, new_root)
    if old_size in {0, new_size}:
        if proof:
            raise ProofError("consistency proof is too long")
        return
    # Begin at the largest complete subtree that ends where the old tree ends. Where it is the whole
    # old tree, its hash is known and the proof leaves it out.
    level = ((old_size - 1) ^ old_size).bit_length() - 1
    node, last = (old_size - 1) >> level, (new_size - 1) >> level
    sides = _sides(node, last)
    hashes = list(proof) if node else [old_root, *proof]
    if len(hashes) != 1 + len(sides):
        raise ProofError("consistency proof is too long or too short")
    old = new = hashes[0]
    for sibling_is_left, sibling in zip(sides, hashes[1:], strict=True):
        if sibling_is_left:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    if not compare_digest(old, old_root):
        raise ProofError("consistency proof leads to another old root")
    if not compare_digest(new, new_root):
        raise ProofError("consistency proof leads to another new root")


def _check_heads(old_size: int, new_size: int, old_root: bytes, new_root: bytes) -> None:
    """Check what needs no proof: the order of the sizes, equal trees, empty trees."""
    if not 0 <= old_size <= new_size:
        raise ProofError("the new tree is smaller than the old one")
    if old_size == new_size and old_root != new_root:
        raise ProofError("there are two roots for one tree size")
    if (old_size == 0 and old_root != EMPTY_ROOT) or (new_size == 0 and new_root != EMPTY_ROOT):
        raise ProofError("an empty tree has a root that is not the empty one")


def _sides(node: int, last: int) -> list[bool]:
    """Return, from `node` up to the root, whether each sibling stands to the left.

    `last` is the last node of the same level; a node without a sibling is passed over.
    """
    sides = []
    while last:
        if node & 1 or node < last:
            sides.append(bool(node & 1))
        node >>= 1
        last >>= 1
    return sides


def _check_hashes(*hashes: bytes) -> None:
    if any(len(h) != HASH_SIZE for h in hashes):
        raise ProofError("a hash is not 32 bytes long")


def complete_root(hashes: bytes) -> bytes:
    """Return the root over joined hashes whose number is a power of two, at least one."""
    while len(hashes) > HASH_SIZE:
        hashes = b"".join(
            [
                sha256(b"\x01" + hashes[i : i + 2 * HASH_SIZE]).digest()
                for i in range(0, len(hashes), 2 * HASH_SIZE)
            ]
        )
    return hashes


def edge_root(edge: Sequence[bytes], width: int) -> bytes:
    """Return the root of a tree from its right edge, given as its last tiles.

    `edge[l]` are joined hashes of nodes of level `l * width`, at most `2**width` of them: all that
    are not yet part of a node in `edge[l + 1]`. An empty edge gives the empty root.
    """
    root = b""
    for level, hashes in enumerate(edge):
        count, end = len(hashes) // HASH_SIZE, len(hashes)
        if count > 1 << width:
            raise ValueError(f"edge is too wide at level {level}")
        # Complete subtrees by the bits of the width, from the smallest and rightmost one.
        while count:
            begin = end - (count & -count) * HASH_SIZE
            peak = complete_root(hashes[begin:end])
            root = node_hash(peak, root) if root else peak
            end = begin
            count &= count - 1
    return root or EMPTY_ROOT


class Tree:
    """An append-only tree in memory: one bytearray a level, 64 bytes a leaf in all.

    One thread appends. Others may meanwhile ask for any size that they have seen, because every
    node of such a size exists already and never changes.
    """

    __slots__ = ("_edge", "_levels", "_size")

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        self._size = 0
        # The right edge of the size asked for last; see _edge_of.
        self._edge: tuple[int, list[bytes]] = (0, [EMPTY_ROOT])
        self.append(leaf_hashes)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._size

    def append(self, leaf_hashes: Iterable[bytes]) -> int:
        """Append leaf hashes in order and return the new size.

        Raises ValueError, with the tree unchanged, if one of them is not 32 bytes long.
        """
        hashes = list(leaf_hashes)
        if any(len(h) != HASH_SIZE for h in hashes):
            raise ValueError("a leaf hash is 32 bytes long")
        if not hashes:
            return self._size
        joined = b"".join(hashes)
        first = self._size
        size = first + len(hashes)
        levels = self._levels
        levels[0] += joined
        level = 0
        while size >> (level + 1):
            if len(levels) == level + 1:
                levels.append(bytearray())
            above = levels[level + 1]
            begin = len(above) * 2
            below = bytes(levels[level][begin : (size >> (level + 1)) * 2 * HASH_SIZE])
            if not below:
                break
            above += b"".join(
                [
                    sha256(b"\x01" + below[i : i + 2 * HASH_SIZE]).digest()
                    for i in range(0, len(below), 2 * HASH_SIZE)
                ]
            )
            level += 1
        self._size = size
        return size

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree; raises IndexError if the tree has no such node."""
        if level < 0 or index < 0 or (index + 1) << level > self._size:
            raise IndexError("no such node in the tree")
        at = index * HASH_SIZE
        return bytes(self._levels[level][at : at + HASH_SIZE])

    def nodes(self, level: int, start: int, end: int) -> bytes:
        """Return the joined hashes of the nodes [start, end) of a level, as tiles need them.

        The hashes of tile `n` at tile level `l` with width `w` are
        `nodes(8 * l, 256 * n, 256 * n + w)`. Raises IndexError if one of them does not exist.
        """
        if level < 0 or not 0 <= start <= end or end << level > self._size:
            raise IndexError("no such nodes in the tree")
        if start == end:
            return b""
        return bytes(self._levels[level][start * HASH_SIZE : end * HASH_SIZE])

    def root(self, size: int | None = None) -> bytes:
        """Return the root at `size` (default: now); raises IndexError beyond the tree."""
        return self._edge_of(self._size if size is None else size)[-1]

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion path of leaf `index` in the tree at `size` (default: now).

        Raises IndexError if the leaf is not in that tree.
        """
        joined = self.inclusions(index, index + 1, size)[0]
        return [joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE)]

    def inclusions(self, start: int, end: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion paths of the leaves [start, end), each as joined hashes.

        One call for a batch shares the right edge and all upper nodes between the leaves. The
        joined form is what a receipt carries; `split_hashes` takes it apart. Raises IndexError if a
        leaf is not in the tree at `size`.
        """
        if size is None:
            size = self._size
        if not 0 <= start < end <= size:
            raise IndexError("no such leaves in the tree")
        edge = self._edge_of(size)
        # Down from the root: the path of a node is its sibling's hash and the path of its parent.
        paths = [b""]
        first = 0
        for level in range(len(edge) - 2, -1, -1):
            hashes = self._levels[level]
            last = (size - 1) >> level
            low, high = start >> level, (end - 1) >> level
            current: list[bytes] = []
            for node in range(low, high + 1):
                sibling = node ^ 1
                above = paths[(node >> 1) - first]
                if sibling < last:
                    at = sibling * HASH_SIZE
                    current.append(bytes(hashes[at : at + HASH_SIZE]) + above)
                elif sibling == last:
                    current.append(edge[level] + above)
                else:
                    current.append(above)
            paths = current
            first = low
        return paths

    def consistency(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes (RFC 6962 section 2.1.2).

        It is empty for equal sizes and for `old_size` 0. Raises IndexError beyond the tree.
        """
        if new_size is None:
            new_size = self._size
        if not 0 <= old_size <= new_size <= self._size:
            raise IndexError("no such sizes in the tree")
        if old_size in {0, new_size}:
            return []
        edge = self._edge_of(new_size)
        node, last, level = old_size - 1, new_size - 1, 0
        while node & 1:
            node >>= 1
            last >>= 1
            level += 1
        proof = [self._at(level, node, last, edge)] if node else []
        while last:
            if node & 1:
                proof.append(self._at(level, node - 1, last, edge))
            elif node < last:
                proof.append(self._at(level, node + 1, last, edge))
            node >>= 1
            last >>= 1
            level += 1
        return proof

    def _at(self, level: int, index: int, last: int, edge: list[bytes]) -> bytes:
        return edge[level] if index == last else self.node(level, index)

    def _edge_of(self, size: int) -> list[bytes]:
        """Return, from level 0 up to the root, the hash of the last subtree of each level.

        The last subtree of a level may be incomplete; all to its left are complete.
        """
        cached, edge = self._edge
        if cached == size:
            return edge
        if not 0 <= size <= self._size:
            raise IndexError("no such size of the tree")
        if size == 0:
            return [EMPTY_ROOT]
        last = size - 1
        current = self.node(0, last)
        edge = [current]
        level = 0
        while last:
            if last & 1:
                current = node_hash(self.node(level, last - 1), current)
            last >>= 1
            level += 1
            edge.append(current)
        self._edge = (size, edge)
        return edge
