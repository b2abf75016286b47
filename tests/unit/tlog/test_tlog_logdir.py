import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.logchange import LogKey, change_leaf
from sealward.tlog.logdir import LogReport, LogVerificationError, verify_directory, verify_log
from sealward.tlog.merkle import leaf_hash
from sealward.tlog.tiles import encode_bundle, entries_path, tile_path
from tests.support.tlog_logs import (
    ORIGIN,
    DictReader,
    entries,
    entry,
    log_files,
    reader,
    signer,
    tree_of,
    write_log,
)

Files = dict[str, bytes]


def verify(files: Files, known: tuple[Checkpoint, ...] = ()) -> LogReport:
    return verify_log(reader(files), [signer().verifier], known=known, files=files)


def refused(files: Files, known: tuple[Checkpoint, ...] = ()) -> LogVerificationError:
    with pytest.raises(LogVerificationError) as caught:
        verify(files, known)
    return caught.value


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 512, 700, 65_535, 65_536, 65_537])
def test_good_logs_verify(size: int) -> None:
    leaves = entries(size)
    files = log_files(leaves)
    steps: list[tuple[int, int]] = []
    report = verify_log(
        reader(files), [signer().verifier], lambda done, of: steps.append((done, of)), files=files
    )
    assert (report.origin, report.size) == (ORIGIN, size)
    assert report.root == tree_of(leaves).root()
    assert report.signers == (f"{ORIGIN}+{signer().key_id.hex()}",)
    assert report.files == len(files)
    assert report.entry_bytes == sum(len(leaf) for leaf in leaves)
    assert (report.ahead, report.unknown) == (0, ())
    assert len(steps) == -(-size // 256)
    assert not steps or steps[-1] == (size, size)


@pytest.mark.parametrize(("size", "sizes"), [(1, ()), (3, (1,)), (5, ())])
def test_every_flipped_bit_of_a_small_log_is_found_in_its_file(
    size: int, sizes: tuple[int, ...]
) -> None:
    files = log_files(entries(size), sizes)
    for path, content in files.items():
        for bit in range(len(content) * 8):
            assert refused(files | {path: flip(content, bit)}).findings[0].path == path


def test_flipped_bits_all_over_a_larger_log_are_found_in_their_file() -> None:
    files = log_files(entries(600), sizes=(100, 256, 300))
    verify(files)
    for path, content in files.items():
        step = 8 * len(content) // 40 - 1
        for bit in range(0, len(content) * 8, step):
            assert refused(files | {path: flip(content, bit)}).findings[0].path == path


def test_every_missing_file_is_found() -> None:
    files = log_files(entries(600), sizes=(100,))
    needed = log_files(entries(600))
    for path in needed:
        error = refused({p: c for p, c in files.items() if p != path})
        assert error.findings[0].path == path
        assert "missing" in str(error)


def test_a_bad_entry_is_named_by_its_index() -> None:
    leaves = entries(600)
    files = log_files(leaves)
    for index in (0, 255, 256, 511, 512, 599):
        bundle = index // 256
        changed = list(leaves)
        changed[index] = entry(10_000)
        width = min(256, 600 - bundle * 256)
        path = entries_path(bundle, width)
        content = encode_bundle(changed[bundle * 256 : bundle * 256 + width])
        error = refused(files | {path: content})
        assert (error.count, error.findings[0].entry, error.findings[0].path) == (1, index, path)
        assert str(error).startswith(f"entry {index} in {path} ")


def test_a_length_that_is_wrong_is_named_by_the_entry_that_it_breaks() -> None:
    leaves = entries(300)
    files = log_files(leaves)
    path = entries_path(0)
    at = sum(2 + len(leaf) for leaf in leaves[:200])
    content = bytearray(files[path])
    content[at] ^= 0x80
    assert refused(files | {path: bytes(content)}).findings[0].entry == 200


def test_swapped_entries_and_files_are_found() -> None:
    leaves = entries(600)
    files = log_files(leaves)
    swapped = [*leaves[:5], leaves[6], leaves[5], *leaves[7:256]]
    assert refused(files | {entries_path(0): encode_bundle(swapped)}).findings[0].entry == 5
    one, two = entries_path(0), entries_path(1)
    assert refused(files | {one: files[two], two: files[one]}).findings[0].entry == 0


@pytest.mark.parametrize("index", [3, 400, 590])
def test_an_entry_rewritten_with_its_tile_is_found_below_the_tile(index: int) -> None:
    leaves = entries(600)
    files = log_files(leaves)
    leaves[index] = entry(10_000)
    forged = log_files(leaves)
    width = min(256, 600 - index // 256 * 256)
    touched = (entries_path(index // 256, width), tile_path(0, index // 256, width))
    error = refused(files | {path: forged[path] for path in touched})
    assert error.findings[0].path == (touched[1] if width == 256 else "checkpoint")


def test_a_whole_rewritten_log_under_the_old_checkpoint_is_found() -> None:
    leaves = entries(300)
    files = log_files(leaves)
    leaves[7] = entry(10_000)
    forged = log_files(leaves)
    error = refused(forged | {"checkpoint": files["checkpoint"]})
    assert [finding.path for finding in error.findings] == ["checkpoint"]


def test_a_removed_tail_is_found() -> None:
    files, shorter = log_files(entries(300)), log_files(entries(200))
    assert refused(shorter | {"checkpoint": files["checkpoint"]}).findings


def test_a_log_cut_together_with_its_checkpoint_is_found_by_who_saw_more() -> None:
    leaves = entries(300)
    seen = Checkpoint(ORIGIN, 300, tree_of(leaves).root())
    shorter = log_files(leaves[:200])
    verify(shorter)
    assert "older" in str(refused(shorter, (seen,)))


@pytest.mark.parametrize("size", [1, 150, 256, 257, 300])
def test_a_log_rewritten_with_its_key_is_found_by_who_saw_less(size: int) -> None:
    leaves = entries(300)
    seen = Checkpoint(ORIGIN, size, tree_of(leaves[:size]).root())
    verify(log_files(leaves), (seen,))
    leaves[size - 1] = entry(10_000)
    forged = log_files(leaves)
    verify(forged)
    assert "not of the same log" in str(refused(forged, (seen,)))
    other = Checkpoint("another/log", size, seen.root)
    verify(forged, (other,))


def test_signatures_of_others_do_not_count() -> None:
    leaves = entries(3)
    for other in (signer(2), signer(1, "another/log")):
        with pytest.raises(LogVerificationError, match="checkpoint is not signed"):
            verify_log(reader(log_files(leaves, signers=[other])), [signer().verifier])
    with pytest.raises(LogVerificationError, match="another log"):
        verify_log(reader(log_files(leaves)), [signer().verifier], origin="another/log")


def test_keys_may_overlap() -> None:
    both = log_files(entries(3), signers=[signer(1), signer(2)])
    old, new = signer(1).verifier, signer(2).verifier
    assert len(verify_log(reader(both), [old, new]).signers) == 2
    assert verify_log(reader(both), [new]).signers == (f"{ORIGIN}+{new.key_id.hex()}",)


@pytest.mark.parametrize(
    "leaf", [b"", b"\x01", b"\x02" + entry(0)[1:], b"\x01" + bytes(120), b"x" * 200]
)
def test_an_entry_that_is_no_leaf_is_named(leaf: bytes) -> None:
    leaves = entries(300)
    leaves[270] = leaf
    error = refused(log_files(leaves))
    assert (error.count, error.findings[0].entry) == (1, 270)


def test_longest_and_shortest_leaves_verify() -> None:
    verify(log_files([entry(0), entry(1, 65_535 - 49)]))


@pytest.mark.parametrize(
    "change",
    [lambda c: c + b"\0", lambda c: c[:-1], lambda _: b"", lambda c: c + c],
    ids=["longer", "shorter", "empty", "twice"],
)
def test_files_of_wrong_length_are_found(change: Callable[[bytes], bytes]) -> None:
    files = log_files(entries(600), sizes=(100,))
    for path, content in files.items():
        assert refused(files | {path: change(content)}).findings[0].path == path


def test_bundle_and_tile_lost_together_end_the_walk() -> None:
    files = log_files(entries(600))
    del files[entries_path(1)], files[tile_path(0, 1)]
    assert {f.path for f in refused(files).findings} == {entries_path(1), tile_path(0, 1)}


def test_an_earlier_checkpoint_verifies_while_the_log_grows() -> None:
    leaves = entries(300)
    older = Checkpoint(ORIGIN, 200, tree_of(leaves[:200]).root())
    note = sign_checkpoint(older, [signer()])
    files = log_files(leaves) | {"checkpoint": note}
    report = verify(files)
    assert report.size == 200
    # Both kinds of full file at 0, the partial ones at 1, and the tile at level 1.
    assert report.ahead == 5


def test_unreadable_files_are_named() -> None:
    files = log_files(entries(3))
    for broken in files:

        def read(path: str, broken: str = broken) -> bytes:
            if path == broken:
                raise PermissionError
            return DictReader(files)(path)

        with pytest.raises(LogVerificationError, match=f"{broken} cannot be read"):
            verify_log(read, [signer().verifier])


def test_many_findings_are_counted_and_capped() -> None:
    leaves = entries(256)
    files = log_files([b"x" * 200] * 256)
    error = refused(files)
    assert (error.count, len(error.findings)) == (256, 100)
    assert not refused(log_files([*leaves[:255], b"x" * 200])).findings[0].message.count("xxx")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "log"
    write_log(directory, log_files(entries(600), sizes=(100, 300)))
    yield directory
    shutil.rmtree(directory)


def test_a_directory_is_verified_with_all_that_is_in_it(log: Path) -> None:
    (log / "tile" / "leftover.tmp").write_bytes(b"?")
    report = verify_directory(log, [signer().verifier])
    assert report.unknown == ("tile/leftover.tmp",)
    assert report.size == 600
    old = log / entries_path(0, 100)
    old.write_bytes(flip(old.read_bytes(), 1000))
    with pytest.raises(LogVerificationError, match=entries_path(0, 100)):
        verify_directory(log, [signer().verifier])


def test_a_directory_in_place_of_a_file_is_refused(log: Path) -> None:
    (log / tile_path(0, 0)).unlink()
    (log / tile_path(0, 0)).mkdir()
    with pytest.raises(LogVerificationError, match="tile/0/000 cannot be read"):
        verify_directory(log, [signer().verifier])


def test_no_log_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogVerificationError, match="checkpoint is missing"):
        verify_directory(tmp_path / "nothing", [signer().verifier])


def test_a_forged_level_one_tile_is_blamed_alone() -> None:
    files = log_files(entries(65_600))
    for path in ("tile/1/000", "tile/2/000.p/1", "tile/0/256.p/64"):
        content = files[path][:-32] + leaf_hash(b"forged")
        error = refused(files | {path: content})
        assert [finding.path for finding in error.findings] == [path]


def test_a_broken_bundle_without_its_tile_ends_the_walk() -> None:
    files = log_files(entries(600))
    del files[tile_path(0, 1)]
    files[entries_path(1)] = files[entries_path(1)][:-1]
    error = refused(files)
    assert [f.path for f in error.findings] == [tile_path(0, 1), entries_path(1)]
    assert error.findings[1].entry == 511


def test_a_partial_file_that_vanishes_meanwhile_is_no_finding() -> None:
    files = log_files(entries(300), sizes=(100,))
    listed = set(files)
    del files[entries_path(0, 100)], files[tile_path(0, 0, 100)]
    verify_log(reader(files), [signer().verifier], files=listed)


def test_a_bad_tile_below_a_missing_one_is_still_found() -> None:
    files = log_files(entries(600))
    del files[tile_path(1, 0, 2)]
    files[tile_path(0, 1)] = flip(files[tile_path(0, 1)], 0)
    paths = {finding.path for finding in refused(files).findings}
    assert {entries_path(1), tile_path(1, 0, 2)} <= paths


def test_two_files_changed_at_the_edge_are_each_told_apart() -> None:
    leaves = entries(600)
    files = log_files(leaves)
    edge, above = tile_path(0, 2, 88), tile_path(1, 0, 2)
    both = {edge: flip(files[edge], 5), above: flip(files[above], 5)}
    assert {finding.path for finding in refused(files | both).findings} == {edge, above}
    bundle = entries_path(2, 88)
    mixed = {bundle: flip(files[bundle], 8 * 30), above: flip(files[above], 5)}
    assert {finding.path for finding in refused(files | mixed).findings} == {bundle, above}
    changed = files | mixed | {"tile/0/002.p/88": flip(files[edge], 5)}
    assert refused(changed).count >= 2


def going_on(
    files: Files, after: Checkpoint, known: tuple[Checkpoint, ...] = ()
) -> tuple[LogReport, set[str]]:
    """Verify what came after a checkpoint; return the report and the files that were read."""
    seen: set[str] = set()
    read = reader(files)

    def watched(path: str) -> bytes:
        seen.add(path)
        return read(path)

    return verify_log(watched, [signer().verifier], known=known, after=after), seen


def at(leaves: list[bytes], size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, tree_of(leaves).root(size))


SIZES = [0, 1, 2, 255, 256, 257, 300, 512, 600, 65_535, 65_536, 65_800]


@pytest.mark.parametrize("new", SIZES)
def test_what_came_later_verifies_from_any_size(new: int) -> None:
    leaves = entries(new)
    files = log_files(leaves)
    tree = tree_of(leaves)
    for old in [size for size in SIZES if size <= new]:
        after = Checkpoint(ORIGIN, old, tree.root(old))
        report, read = going_on(files, after)
        assert (report.size, report.root, report.after) == (new, tree.root(), old)
        assert report.checkpoint == Checkpoint(ORIGIN, new, tree.root())
        bundles = {path for path in read if "entries" in path}
        first = old // 256
        assert len(bundles) == max(0, -(-new // 256) - first)
        assert report.entry_bytes == sum(map(len, leaves[first * 256 :]))


@pytest.mark.parametrize("old", [1, 255, 256, 300, 511, 512, 599])
def test_a_fork_after_what_was_verified_is_found(old: int) -> None:
    leaves = entries(600)
    forged = [*leaves[: old - 1], entry(10_000), *leaves[old:]]
    for files, after in (
        (log_files(forged), at(leaves, old)),
        (log_files(leaves), at(forged, old)),
    ):
        with pytest.raises(
            LogVerificationError, match=f"not of the same log as a known one of {old}"
        ):
            going_on(files, after)
    with pytest.raises(LogVerificationError, match="older than a known one"):
        going_on(log_files(leaves[: old - 1]), at(leaves, old))
    with pytest.raises(LogVerificationError, match="another log"):
        going_on(log_files(leaves), Checkpoint("another/log", old, bytes(32)))


@pytest.mark.parametrize("old", [1, 256, 300, 512, 800])
def test_every_change_of_what_came_later_is_found(old: int) -> None:
    size = 900
    leaves = entries(size)
    files = log_files(leaves)
    after = at(leaves, old)
    _, read = going_on(files, after)
    for path in sorted(read):
        content = files[path]
        step = 8 * len(content) // 25 - 1
        for bit in range(0, len(content) * 8, step):
            with pytest.raises(LogVerificationError):
                going_on(files | {path: flip(content, bit)}, after)
        with pytest.raises(LogVerificationError):
            going_on({p: c for p, c in files.items() if p != path}, after)
    # An entry is still named.
    changed = [*leaves[:850], entry(10_000), *leaves[851:]]
    path = entries_path(3, size - 768)
    with pytest.raises(LogVerificationError) as caught:
        going_on(files | {path: encode_bundle(changed[768:])}, after)
    assert (caught.value.findings[0].path, caught.value.findings[0].entry) == (path, 850)


@pytest.mark.parametrize("size", [1, 150, 256, 257, 299, 300, 400, 600])
def test_checkpoints_older_than_what_was_verified_count_too(size: int) -> None:
    leaves = entries(600)
    files, after = log_files(leaves), at(leaves, 300)
    going_on(files, after, (at(leaves, size),))
    forged = [*leaves[: size - 1], entry(10_000), *leaves[size:]]
    with pytest.raises(LogVerificationError, match=f"not of the same log as a known one of {size}"):
        going_on(files, after, (at(forged, size),))


def test_tiles_that_were_changed_do_not_vouch_for_an_older_checkpoint() -> None:
    leaves = entries(600)
    forged = [*leaves[:99], entry(10_000), *leaves[100:]]
    files, after = log_files(leaves), at(leaves, 300)
    lie = files | {tile_path(0, 0): log_files(forged)[tile_path(0, 0)]}
    with pytest.raises(LogVerificationError, match="not of the same log as a known one of 300"):
        going_on(lie, after, (at(forged, 100),))


def test_changes_of_the_log_are_reported_where_they_are_met() -> None:
    change = LogKey(ORIGIN, signer(1).vkey, signer(2).vkey)
    leaves = [*entries(299), change_leaf(bytes(16), change), *entries(5)]
    files = log_files(leaves)
    assert verify(files).changes == ((299, change),)
    assert going_on(files, at(leaves, 299))[0].changes == ((299, change),)
    assert going_on(files, at(leaves, 300))[0].changes == ()


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    write_log(tmp_path, log_files(entries(300)))
    bundle = next((tmp_path / "tile/entries").glob("000"))
    bundle.unlink()
    os.mkfifo(bundle)
    with pytest.raises(LogVerificationError) as caught:
        verify_directory(tmp_path, [signer().verifier])
    assert caught.value.findings[0].path == "tile/entries/000"
