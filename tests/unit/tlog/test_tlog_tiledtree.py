"""The tree with dropped tiles gives the same answers as the tree that keeps everything."""

from __future__ import annotations

import random

import pytest

from sealward.tlog.errors import ProofError
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.tiledtree import TiledTree

HASHES = [leaf_hash(b"%d" % n) for n in range(70_000)]


def tile(number: int) -> bytes:
    return b"".join(HASHES[number * 256 : number * 256 + 256])


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513, 1000, 65_535, 65_536, 65_793])
def test_the_same_answers(size: int) -> None:
    dice = random.Random(size)  # noqa: S311
    whole = Tree(HASHES[:size])
    tree = TiledTree(tile, cached=2)
    at = 0
    while at < size:
        some = dice.choice((1, 3, 200, 256, 300, 5000))
        tree.append(HASHES[at : min(size, at + some)])
        at += some
    assert tree.size == size
    assert tree.root() == whole.root()
    for level in range(18):
        count = size >> level
        assert tree.nodes(level, 0, min(count, 700)) == whole.nodes(level, 0, min(count, 700))
    for _ in range(60):
        some = dice.randint(1, size)
        index = dice.randrange(some)
        assert tree.inclusion(index, some) == whole.inclusion(index, some)
        end = min(some, index + dice.choice((1, 2, 255, 600)))
        assert tree.inclusions(index, end, some) == whole.inclusions(index, end, some)
        assert tree.root(some) == whole.root(some)
        assert tree.consistency(index, some) == whole.consistency(index, some)


def test_dropped_tiles_are_loaded_and_checked() -> None:
    asked: list[int] = []

    def load(number: int) -> bytes:
        asked.append(number)
        return tile(number) if number != 1 else tile(2)

    tree = TiledTree(load, cached=1)
    tree.append(HASHES[:1100])
    assert asked == []
    tree.inclusion(3)
    assert asked == [0]
    with pytest.raises(ProofError):
        tree.inclusion(300)
    with pytest.raises(IndexError):
        tree.node(0, 1100)
    with pytest.raises(ValueError, match="32 bytes"):
        tree.append([b"short"])
    assert tree.size == 1100


@pytest.mark.parametrize("size", [0, 1, 7, 255, 256, 257, 511, 512, 65_535])
@pytest.mark.parametrize("more", [0, 1, 2, 64, 255, 256, 257, 600])
def test_a_tree_grows_on_paper_first(size: int, more: int) -> None:
    tree = TiledTree(tile)
    tree.append(HASHES[:size])
    before, whole = Tree(HASHES[:size]), Tree(HASHES[: size + more])
    growth = tree.grown(HASHES[size : size + more])
    assert (growth.size, growth.root) == (size + more, whole.root())
    assert (tree.size, tree.root()) == (size, before.root())
    assert tree.nodes(0, 0, size) == before.nodes(0, 0, size)
    tree.adopt(growth)
    assert (tree.size, tree.root()) == (size + more, whole.root())
    assert tree.nodes(0, 0, size + more) == whole.nodes(0, 0, size + more)


def test_growth_is_of_the_tree_as_it_was() -> None:
    tree = TiledTree(tile)
    growth = tree.grown(HASHES[:3])
    tree.append(HASHES[:1])
    with pytest.raises(ValueError, match="meanwhile"):
        tree.adopt(growth)
    assert tree.root() == Tree(HASHES[:1]).root()
