"""Properties of the transparency log over sizes and positions that nobody chose."""

from contextlib import suppress
from functools import cache
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import ProofError, TlogError
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.logdir import LogVerificationError, verify_log
from sealward.tlog.merkle import (
    EMPTY_ROOT,
    Tree,
    edge_root,
    leaf_hash,
    node_hash,
    split_hashes,
    verify_consistency,
    verify_inclusion,
)
from sealward.tlog.note import open_note, parse_note, parse_vkeys, sign_note
from sealward.tlog.proof import TlogProof
from sealward.tlog.receipt import open_receipt
from sealward.tlog.tiles import (
    TILE_WIDTH,
    decode_bundle,
    encode_bundle,
    parse_path,
    tiles_at,
    tiles_between,
)
from tests.support.tlog_logs import entries, log_files, reader, signer

LARGEST = 70_000

# No wall-clock limit: a busy machine is no failure.
STEADY = settings(deadline=None)


@cache
def large() -> Tree:
    return Tree(sha256(b"%d" % i).digest() for i in range(LARGEST))


def naive_root(hashes: list[bytes]) -> bytes:
    """The definition of RFC 6962 section 2.1, word for word."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(naive_root(hashes[:split]), naive_root(hashes[split:]))


@STEADY
@given(st.lists(st.binary(max_size=3), max_size=70), st.lists(st.integers(0, 70), max_size=4))
def test_root_is_the_definition_however_it_is_built(leaves: list[bytes], cuts: list[int]) -> None:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    tree = Tree()
    bounds = [0, *sorted(min(cut, len(hashes)) for cut in cuts), len(hashes)]
    for start, end in pairwise(bounds):
        tree.append(hashes[start:end])
    for size in range(len(hashes) + 1):
        assert tree.root(size) == naive_root(hashes[:size])


@STEADY
@given(st.data())
def test_inclusion_holds_at_any_size(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    tree = large()
    path = tree.inclusion(index, size)
    verify_inclusion(tree.node(0, index), index, size, path, tree.root(size))
    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises(ProofError):
            verify_inclusion(tree.node(0, index), other, size, path, tree.root(size))


@STEADY
@given(st.data())
def test_batches_give_the_paths_of_single_leaves(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, min(size, start + 300)))
    tree = large()
    paths = tree.inclusions(start, end, size)
    assert len(paths) == end - start
    for index in {start, end - 1, (start + end) // 2}:
        path = split_hashes(paths[index - start])
        assert path == tree.inclusion(index, size)
        verify_inclusion(tree.node(0, index), index, size, path, tree.root(size))


@STEADY
@given(st.data())
def test_consistency_holds_between_any_sizes(data: st.DataObject) -> None:
    new = data.draw(st.integers(0, LARGEST))
    old = data.draw(st.integers(0, new))
    tree = large()
    proof = tree.consistency(old, new)
    verify_consistency(old, new, proof, tree.root(old), tree.root(new))
    if old > 0:
        with pytest.raises(ProofError):
            verify_consistency(old, new, proof, leaf_hash(b"fork"), tree.root(new))


@STEADY
@given(st.integers(0, LARGEST))
def test_edge_gives_the_root(size: int) -> None:
    tree = large()
    edge = [
        tree.nodes(8 * level, (size >> 8 * level) // 256 * 256, size >> 8 * level)
        for level in range(3)
    ]
    assert edge_root(edge, 8) == tree.root(size)


@STEADY
@given(st.integers(0, LARGEST))
def test_tiles_cover_the_tree_once(size: int) -> None:
    tiles = list(tiles_at(size))
    for level in (None, 0, 1, 2):
        covered = sum(tile.width for tile in tiles if tile.level == level)
        assert covered == size >> 8 * (level or 0)
    assert all(parse_path(tile.path) == tile for tile in tiles)


@STEADY
@given(st.lists(st.integers(0, LARGEST), max_size=5))
def test_growing_in_steps_leaves_every_tile_of_the_end(steps: list[int]) -> None:
    sizes = [0, *sorted(steps)]
    written = {t for a, b in pairwise(sizes) for t in tiles_between(a, b)}
    assert written >= set(tiles_at(sizes[-1]))


@STEADY
@given(st.integers(0, 63), st.integers(0, 10**12), st.integers(1, 256))
def test_paths_of_any_tile_lead_back(level: int, index: int, width: int) -> None:
    tile = next(iter(tiles_at(1)))
    for made in (type(tile)(level, index, width), type(tile)(None, index, width)):
        assert parse_path(made.path) == made


@STEADY
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=TILE_WIDTH))
def test_bundles_lead_back(parts: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(parts), len(parts)) == parts


@STEADY
@given(st.binary(max_size=300), st.integers(1, 8))
def test_bundles_have_one_spelling(data: bytes, width: int) -> None:
    try:
        parts = decode_bundle(data, width)
    except TlogError:
        return
    assert encode_bundle(parts) == data


@STEADY
@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.binary(max_size=200),
    st.none() | st.binary(max_size=200),
)
def test_proof_texts_lead_back(
    index: int, path: list[bytes], checkpoint: bytes, extra: bytes | None
) -> None:
    proof = TlogProof(index, tuple(path), checkpoint, extra)
    assert TlogProof.parse(proof.format()) == proof


LINES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)


@STEADY
@given(st.lists(LINES, min_size=1, max_size=4), st.integers(0))
def test_any_text_can_be_signed_and_no_flipped_bit_passes(lines: list[str], bit: int) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    data = sign_note(text, [signer()])
    assert open_note(data, [signer().verifier]).text == text
    flipped = bytearray(data)
    bit %= len(data) * 8
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TlogError):
        open_note(bytes(flipped), [signer().verifier])


SAMPLES = [
    log_files(entries(3))["checkpoint"],
    TlogProof(1, (EMPTY_ROOT,), log_files(entries(3))["checkpoint"], b"extra").format(),
    signer().vkey.encode(),
    b"tile/entries/x001/234.p/17",
    entries(1)[0],
]


@STEADY
@given(st.sampled_from(SAMPLES), st.binary(max_size=8), st.integers(0), st.integers(0, 9))
def test_readers_of_foreign_bytes_raise_their_own_errors_alone(
    sample: bytes, put: bytes, at: int, cut: int
) -> None:
    at %= len(sample) + 1
    data = sample[:at] + put + sample[at + cut :]
    text = data.decode("utf-8", "replace")
    keys = [signer().verifier]
    for read in (
        lambda: parse_note(data),
        lambda: open_checkpoint(data, keys),
        lambda: Checkpoint.parse(data),
        lambda: TlogProof.parse(data),
        lambda: open_receipt(data, keys),
        lambda: parse_leaf(data),
        lambda: parse_vkeys(text),
        lambda: parse_path(text),
        lambda: decode_bundle(data, 3),
    ):
        with suppress(TlogError):
            read()


@settings(STEADY, max_examples=40)
@given(st.data())
def test_no_change_of_any_log_passes(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 800))
    steps = sorted(data.draw(st.lists(st.integers(1, size), max_size=2)))
    files = log_files(entries(size), steps)
    verify_log(reader(files), [signer().verifier], files=files)
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[path])
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LogVerificationError) as caught:
        verify_log(reader(files | {path: bytes(content)}), [signer().verifier], files=files)
    assert caught.value.findings[0].path == path
