"""Names and contents of tiles and entry bundles (c2sp.org/tlog-tiles).

A tile at level `l` holds up to 256 hashes: the nodes [256 n, 256 n + width) of tree level 8 l. An
entry bundle holds the up to 256 entries under a level-0 tile. The last ones of a tree are partial
and carry their width in their name.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sealward.tlog.errors import TileError
from sealward.tlog.merkle import Tree

TILE_HEIGHT = 8
"""Tree levels in a tile."""

TILE_WIDTH = 1 << TILE_HEIGHT
"""Hashes in a full tile, entries in a full bundle."""

MAX_ENTRY_SIZE = 0xFFFF
"""Bytes; the length of an entry is two bytes."""

CHECKPOINT_PATH = "checkpoint"
"""Where the signed checkpoint is."""

COSIGNED_PATH = "checkpoint.cosigned"
"""Where the newest checkpoint is that has the cosignatures its log's policy asks for. No part of
tlog-tiles: a log that is published faster than its witnesses answer has one."""

_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<groups>(?:x[0-9]{3}/){0,6})(?P<last>[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile (`level` 0 to 63) or an entry bundle (`level` None); `width` is 1 to 256."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix."""
        if self.level is None:
            return entries_path(self.index, self.width)
        return tile_path(self.level, self.index, self.width)


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return `tile/<level>/<index>[.p/<width>]`; raises ValueError for what cannot be."""
    if not 0 <= level <= 63:
        raise ValueError("tile level is not between 0 and 63")
    return f"tile/{level}/{_index_path(index, width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return `tile/entries/<index>[.p/<width>]`; raises ValueError for what cannot be."""
    return f"tile/entries/{_index_path(index, width)}"


def parse_path(path: str) -> Tile:
    """Return the tile or bundle that a path names; raises TileError if it names none."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise TileError("path names no tile")
    index = int(match["groups"].replace("x", "").replace("/", "") + match["last"])
    width = int(match["width"] or TILE_WIDTH)
    level = None if match["level"] == "entries" else int(match["level"])
    tile = Tile(level, index, width)
    # The pattern lets through level 99, width 256 and leading zero groups; the way back does not.
    try:
        spelled = tile.path
    except ValueError as error:
        raise TileError("path names no tile") from error
    if spelled != path:
        raise TileError("path names no tile")
    return tile


def tiles_at(size: int) -> Iterator[Tile]:
    """Yield every tile and bundle of a tree of `size` leaves, level by level, bundles first."""
    yield from tiles_between(0, size)


def tiles_between(old_size: int, new_size: int) -> Iterator[Tile]:
    """Yield the tiles and bundles that a log has to write to grow from `old_size` to `new_size`.

    Level by level, bundles first, in rising order: those that are new, and the partial ones that
    have grown. What was full at `old_size` is never named.
    """
    yield from _grown(None, old_size, new_size)
    level = 0
    while new_size:
        yield from _grown(level, old_size, new_size)
        level += 1
        old_size //= TILE_WIDTH
        new_size //= TILE_WIDTH


def files_between(
    tree: Tree, entries: Callable[[int, int], Sequence[bytes]], old_size: int, new_size: int
) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file that `tiles_between` names.

    `entries(start, end)` returns the entries with these indices. A log writes these files first and
    the checkpoint of `new_size` after all of them.
    """
    for tile in tiles_between(old_size, new_size):
        start = tile.index * TILE_WIDTH
        if tile.level is None:
            yield tile.path, encode_bundle(entries(start, start + tile.width))
        else:
            level = tile.level * TILE_HEIGHT
            yield tile.path, tree.nodes(level, start, start + tile.width)


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return the bundle of 1 to 256 entries; raises TileError if one is over 65,535 bytes."""
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise TileError("a bundle holds 1 to 256 entries")
    if any(len(entry) > MAX_ENTRY_SIZE for entry in entries):
        raise TileError("an entry is longer than 65,535 bytes")
    return b"".join([part for entry in entries for part in (len(entry).to_bytes(2), entry)])


def decode_bundle(data: bytes, width: int = TILE_WIDTH) -> list[bytes]:
    """Return the `width` entries of a bundle; raises TileError if they are not exactly these."""
    entries = []
    at = 0
    for _ in range(width):
        end = at + 2 + int.from_bytes(data[at : at + 2])
        if at + 2 > len(data) or end > len(data):
            raise TileError("bundle ends within an entry")
        entries.append(data[at + 2 : end])
        at = end
    if at != len(data):
        raise TileError("bundle holds more than its entries")
    return entries


def _grown(level: int | None, old: int, new: int) -> Iterator[Tile]:
    if new > old:
        for index in range(old // TILE_WIDTH, -(-new // TILE_WIDTH)):
            yield Tile(level, index, min(TILE_WIDTH, new - index * TILE_WIDTH))


def _index_path(index: int, width: int) -> str:
    if index < 0:
        raise ValueError("tile index is negative")
    if not 1 <= width <= TILE_WIDTH:
        raise ValueError("tile width is not between 1 and 256")
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    path = "/".join(reversed(groups))
    return path if width == TILE_WIDTH else f"{path}.p/{width}"
