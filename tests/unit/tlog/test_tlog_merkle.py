import pytest

from sealward.tlog.errors import ProofError
from sealward.tlog.merkle import (
    EMPTY_ROOT,
    Tree,
    complete_root,
    edge_root,
    leaf_hash,
    node_hash,
    split_hashes,
    verify_consistency,
    verify_inclusion,
)

# The reference leaves and roots of Certificate Transparency (RFC 6962 implementations).
LEAVES = [
    bytes.fromhex(h)
    for h in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def small_tree(size: int) -> Tree:
    return Tree(leaf_hash(b"%d" % i) for i in range(size))


def test_roots_are_those_of_the_reference_tree() -> None:
    tree = Tree()
    assert tree.root() == EMPTY_ROOT
    for size, (leaf, root) in enumerate(zip(LEAVES, ROOTS, strict=True), start=1):
        assert tree.append([leaf_hash(leaf)]) == size
        assert tree.root().hex() == root
    assert [tree.root(n).hex() for n in range(1, 9)] == ROOTS


def test_reference_inclusion_path_of_rfc_6962() -> None:
    # Section 2.1.3: in a tree of 7 leaves the path of d0 is [b, h, l], of d3 [c, g, l].
    d = [leaf_hash(b"%d" % i) for i in range(7)]
    tree = Tree(d)
    g, h = node_hash(d[0], d[1]), node_hash(d[2], d[3])
    i, j = node_hash(d[4], d[5]), d[6]
    assert tree.inclusion(0) == [d[1], h, node_hash(i, j)]
    assert tree.inclusion(3) == [d[2], g, node_hash(i, j)]
    assert tree.inclusion(6) == [i, node_hash(g, h)]
    assert tree.consistency(3) == [d[2], d[3], g, node_hash(i, j)]
    assert tree.consistency(4) == [node_hash(i, j)]
    assert tree.consistency(6) == [i, j, node_hash(g, h)]


def test_batches_and_single_appends_give_the_same_tree() -> None:
    hashes = [leaf_hash(b"%d" % i) for i in range(600)]
    one, many = Tree(), Tree()
    for value in hashes:
        one.append([value])
    for start, end in ((0, 1), (1, 256), (256, 256), (256, 511), (511, 600)):
        many.append(hashes[start:end])
    assert one.root() == many.root()
    assert [one.node(lv, 0) for lv in range(10)] == [many.node(lv, 0) for lv in range(10)]


def test_memory_is_64_bytes_a_leaf() -> None:
    tree = small_tree(4096)
    assert sum(len(level) for level in tree._levels) == (2 * 4096 - 1) * 32


def test_append_refuses_a_short_hash_and_stays_as_it_was() -> None:
    tree = small_tree(5)
    root = tree.root()
    with pytest.raises(ValueError, match="32 bytes"):
        tree.append([leaf_hash(b"x"), b"short"])
    assert (tree.size, tree.root()) == (5, root)
    assert tree.append([]) == 5


def test_questions_beyond_the_tree_are_refused() -> None:
    tree = small_tree(5)
    for ask in (
        lambda: tree.root(6),
        lambda: tree.root(-1),
        lambda: tree.inclusion(5),
        lambda: tree.inclusion(-1),
        lambda: tree.inclusion(0, 6),
        lambda: tree.inclusion(3, 3),
        lambda: tree.inclusions(2, 2),
        lambda: tree.consistency(3, 6),
        lambda: tree.consistency(4, 3),
        lambda: tree.node(0, 5),
        lambda: tree.node(1, 2),
        lambda: tree.node(-1, 0),
        lambda: tree.nodes(0, 0, 6),
        lambda: tree.nodes(3, 0, 1),
    ):
        with pytest.raises(IndexError):
            ask()


def test_earlier_sizes_stay_answerable_after_growth() -> None:
    tree = small_tree(100)
    root, path = tree.root(), tree.inclusion(99)
    tree.append([leaf_hash(b"more")] * 300)
    assert tree.root(100) == root
    assert tree.inclusion(99, 100) == path


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_inclusion_proofs_do_not_hold_for_anything_else(size: int) -> None:
    tree = small_tree(size)
    for index in range(size):
        leaf, path = leaf_hash(b"%d" % index), tree.inclusion(index)
        verify_inclusion(leaf, index, size, path, tree.root())
        wrong = [
            (leaf_hash(b"other"), index, size, path, tree.root()),
            (leaf, index + 1, size, path, tree.root()),
            (leaf, -1, size, path, tree.root()),
            (leaf, size, size, path, tree.root()),
            (leaf, index, size, [*path, leaf], tree.root()),
            (leaf, index, size, path, EMPTY_ROOT),
            (leaf[:31], index, size, path, tree.root()),
        ]
        if path:
            wrong += [
                (leaf, index, size, path[:-1], tree.root()),
                (leaf, index, size, [*path[:-1], path[-1][:31]], tree.root()),
                (leaf, index, size, [*path[:-1], leaf_hash(path[-1])], tree.root()),
            ]
        for arguments in wrong:
            with pytest.raises(ProofError):
                verify_inclusion(*arguments)


def test_consistency_proofs_do_not_hold_for_anything_else() -> None:
    tree = small_tree(13)
    for old in range(14):
        for new in range(old, 14):
            proof = tree.consistency(old, new)
            before, after = tree.root(old), tree.root(new)
            verify_consistency(old, new, proof, before, after)
            other = leaf_hash(b"other")
            wrong = [
                (old, new, [*proof, other], before, after),
                (new + 1, new, proof, before, after),
                (old, new, proof, other, after) if old else (0, new, proof, other, after),
                (old, new, proof, before, after[:31]),
            ]
            if old:
                wrong.append((old, new, proof, before, other))
            if proof:
                wrong.append((old, new, proof[:-1], before, after))
                wrong.append((old, new, [*proof[:-1], other], before, after))
                wrong.append((old, new, [other, *proof[1:]], before, after))
            for arguments in wrong:
                with pytest.raises(ProofError):
                    verify_consistency(*arguments)


def test_empty_tree_has_one_root_only() -> None:
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    with pytest.raises(ProofError):
        verify_consistency(0, 0, [], leaf_hash(b""), leaf_hash(b""))


def test_fork_of_the_same_size_is_refused() -> None:
    with pytest.raises(ProofError, match="two roots"):
        verify_consistency(3, 3, [], leaf_hash(b"a"), leaf_hash(b"b"))


def test_split_hashes() -> None:
    assert split_hashes(b"") == []
    assert split_hashes(b"a" * 32 + b"b" * 32) == [b"a" * 32, b"b" * 32]
    with pytest.raises(ProofError):
        split_hashes(b"a" * 33)


def test_edge_root_is_the_root() -> None:
    tree = small_tree(700)
    for size in (0, 1, 3, 4, 5, 16, 17, 255, 256, 257, 700):
        edge = [
            tree.nodes(lv * 2, (size >> (lv * 2)) // 4 * 4, size >> (lv * 2)) for lv in range(6)
        ]
        assert edge_root(edge, 2) == tree.root(size)
    with pytest.raises(ValueError, match="too wide"):
        edge_root([bytes(5 * 32)], 2)
    assert complete_root(tree.nodes(0, 0, 4)) == tree.node(2, 0)
