import pytest

from sealward.tlog.errors import TileError
from sealward.tlog.tiles import (
    Tile,
    decode_bundle,
    encode_bundle,
    entries_path,
    files_between,
    parse_path,
    tile_path,
    tiles_at,
    tiles_between,
)
from tests.support.tlog_logs import entries, log_files, tree_of


def test_paths_are_those_of_the_specification() -> None:
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_path(63, 0, 255) == "tile/63/000.p/255"
    assert entries_path(1000, 1) == "tile/entries/x001/000.p/1"
    assert entries_path(999) == "tile/entries/999"


@pytest.mark.parametrize("arguments", [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)])
def test_tiles_that_cannot_be_have_no_path(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="tile"):
        tile_path(*arguments)


def test_tiles_of_the_specification_example() -> None:
    tiles = list(tiles_at(70_000))
    count = {
        level: (
            sum(t.level == level and t.width == 256 for t in tiles),
            [t.width for t in tiles if t.level == level and t.width < 256],
        )
        for level in (None, 0, 1, 2, 3)
    }
    assert count == {
        None: (273, [112]),
        0: (273, [112]),
        1: (1, [17]),
        2: (0, [1]),
        3: (0, []),
    }
    assert [t.path for t in tiles_at(256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert list(tiles_at(0)) == []


def test_growth_names_what_is_new_and_what_has_grown() -> None:
    assert [t.path for t in tiles_between(255, 257)] == [
        "tile/entries/000",
        "tile/entries/001.p/1",
        "tile/0/000",
        "tile/0/001.p/1",
        "tile/1/000.p/1",
    ]
    assert [t.path for t in tiles_between(256, 257)] == ["tile/entries/001.p/1", "tile/0/001.p/1"]
    assert list(tiles_between(257, 257)) == []


def test_growing_in_steps_writes_the_same_files() -> None:
    leaves = entries(600)
    whole = log_files(leaves)
    steps = log_files(leaves, sizes=(1, 100, 256, 257, 512, 599))
    assert {path: steps[path] for path in whole} == whole
    tree = tree_of(leaves)
    again = dict(files_between(tree, lambda a, b: leaves[a:b], 512, 600))
    assert again == {path: whole[path] for path in again}


def test_parse_path_is_the_way_back() -> None:
    for tile in (*tiles_at(70_000), Tile(5, 1_234_067, 3), Tile(None, 999_999_999)):
        assert parse_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "tile/0",
        "tile/0/1",
        "tile/0/0001",
        "tile/00/001",
        "tile/64/001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/01",
        "tile/0/001.p",
        "tile/0/x000/001",
        "tile/0/001/001",
        "tile/0/x001",
        "tile/data/001",
        "tile/entries/001 ",
        "tile/entries/٠٠١",
        "/tile/entries/001",
        "tile/../tile/0/001",
        "tile/0/" + "x001/" * 7 + "001",
        "tile/0/" + "x001/" * 2000 + "001",
    ],
)
def test_other_paths_name_no_tile(path: str) -> None:
    with pytest.raises(TileError):
        parse_path(path)


def test_bundles() -> None:
    assert encode_bundle([b"ab", b"", b"c" * 256]) == b"\0\2ab\0\0\1\0" + b"c" * 256
    parts = [b"x" * n for n in (0, 1, 65_535)]
    assert decode_bundle(encode_bundle(parts), 3) == parts


@pytest.mark.parametrize("parts", [[], [b""] * 257, [bytes(65_536)]])
def test_what_is_no_bundle_is_not_encoded(parts: list[bytes]) -> None:
    with pytest.raises(TileError):
        encode_bundle(parts)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\1", b"\0\1a", b"\0\1a\0\1b\0", b"\0\1a\0\3b"])
def test_malformed_bundles_are_refused(data: bytes) -> None:
    with pytest.raises(TileError):
        decode_bundle(data, 2)
