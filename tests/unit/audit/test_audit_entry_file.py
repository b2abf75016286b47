"""The file that makes a batch durable: cut at every byte, changed in every bit, out of space."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sealward.tlog.merkle import leaf_hashes
from services.audit import entryfile
from services.audit.entryfile import NOTHING, DamagedError, EntryFile, Mark
from services.audit.entryrecord import (
    HEAD_BYTES,
    START_BYTES,
    RecordError,
    begin_record,
    end_record,
    file_start,
    parse_head,
    parse_record,
    parse_start,
    record_leaves,
)
from services.audit.store import StoreBrokenError, StoreFullError

IDENTITY = bytes(range(16))


def made(path: Path, identity: bytes = IDENTITY) -> EntryFile:
    EntryFile.create(path, identity)
    file = EntryFile(path)
    file.resume(NOTHING, ())
    return file


def add(file: EntryFile, count: int, size: int = 20) -> list[bytes]:
    leaves = [secrets.token_bytes(size) for _ in range(count)]
    ids, prints = secrets.token_bytes(16 * count), secrets.token_bytes(16 * count)
    first = file.mark.size
    file.begin(first, leaves)
    file.commit(first, leaves, leaf_hashes(leaves), ids, prints, secrets.token_bytes(32))
    return leaves


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.entries"


def read(path: Path, mark: Mark = NOTHING) -> tuple[list[bytes], int]:
    """Return the entries that a start finds, and how many bytes it dropped."""
    with closing(EntryFile(path)) as file:
        dropped = file.resume(mark, [(0, START_BYTES)] if mark.size else ())
        return file.leaves(0, file.mark.size), dropped


def test_what_was_written_is_there_again(path: Path) -> None:
    file = made(path)
    leaves = [leaf for count in (3, 1, 300, 2) for leaf in add(file, count)]
    for start, end in ((0, 306), (0, 1), (3, 4), (100, 200), (303, 306), (2, 305), (7, 7)):
        assert file.leaves(start, end) == leaves[start:end]
        assert file.hashes(start, end) == b"".join(leaf_hashes(leaves[start:end]))
    mark = file.mark
    file.close()
    assert read(path) == (leaves, 0)
    assert read(path, mark) == (leaves, 0)
    with closing(EntryFile(path)) as again, pytest.raises(StoreBrokenError):
        again.leaves(0, 1)


@pytest.mark.parametrize("zeros", [False, True])
def test_an_end_that_was_not_written_whole_is_dropped(path: Path, zeros: bool) -> None:
    """At every byte: the file ends there, or holds nothing from there on."""
    file = made(path)
    before = add(file, 2) + add(file, 1)
    begin = path.stat().st_size
    add(file, 3)
    mark = file.mark
    file.close()
    whole = path.read_bytes()
    for cut in range(begin, len(whole)):
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut) * zeros)
        if zeros or cut > begin:
            assert read(path) == (before, (len(whole) if zeros else cut) - begin)
        assert path.stat().st_size == begin
        assert read(path) == (before, 0)
        # Of what was known to be there nothing may be missing.
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedError, match="rolled back or changed"):
            read(path, mark)
        assert path.read_bytes() == whole[:cut]


def test_sectors_that_were_not_written_are_a_torn_end(path: Path) -> None:
    file = made(path)
    before = add(file, 2)
    begin = path.stat().st_size
    add(file, 4, 700)
    file.close()
    whole = path.read_bytes()
    for sector in range(begin // 512, (len(whole) + 511) // 512):
        data = bytearray(whole)
        start, end = max(begin, sector * 512), min(len(data), (sector + 1) * 512)
        data[start:end] = bytes(end - start)
        path.write_bytes(data)
        assert read(path) == (before, len(whole) - begin), sector


def test_every_flipped_bit_is_found_and_nothing_is_dropped(path: Path) -> None:
    file = made(path)
    for count in (2, 1, 3):
        add(file, count)
    file.close()
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(DamagedError) as caught:
                read(path)
            assert path.read_bytes() == data
            assert at < START_BYTES or " at byte " in str(caught.value)


def test_a_hole_before_a_record_is_no_torn_end(path: Path) -> None:
    file = made(path)
    add(file, 1)
    begin = path.stat().st_size
    add(file, 2, 700)
    end = path.stat().st_size
    add(file, 1)
    file.close()
    whole = path.read_bytes()
    for low, high in ((begin, end), (begin, begin + HEAD_BYTES), (end - 600, end), (end - 1, end)):
        data = bytearray(whole)
        data[low:high] = bytes(high - low)
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=f"at byte {begin}, after 1 entries"):
            read(path)
        # A head alone shows it: it is written when what was before is on the disk.
        path.write_bytes(data[: end + HEAD_BYTES])
        with pytest.raises(DamagedError):
            read(path)


def test_a_record_of_another_file_is_not_taken(path: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", secrets.token_bytes(16))
    add(other, 1)
    other.close()
    made(path).close()
    with path.open("ab") as file:
        file.write((tmp_path / "other").read_bytes()[START_BYTES:])
    with pytest.raises(DamagedError):
        read(path)


@pytest.mark.parametrize("order", [(0, 2), (1, 0), (0, 0, 1), (0, 1, 1, 2)])
def test_records_in_another_order_are_not_taken(path: Path, order: tuple[int, ...]) -> None:
    file = made(path)
    ends = [START_BYTES]
    for _ in range(3):
        add(file, 1)
        ends.append(path.stat().st_size)
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:START_BYTES] + b"".join(whole[ends[n] : ends[n + 1]] for n in order))
    with pytest.raises(DamagedError):
        read(path)


def test_damage_before_the_mark_is_found_when_it_is_read(path: Path) -> None:
    file = made(path)
    for _ in range(3):
        add(file, 2)
    mark = file.mark
    file.close()
    whole = path.read_bytes()
    for at in range(START_BYTES, mark.at):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(StoreBrokenError, match="is damaged at byte"):
            read(path, mark)


# --- writing ------------------------------------------------------------------------------------


def test_a_batch_that_was_begun_and_not_committed_leaves_nothing(path: Path) -> None:
    file = made(path)
    before = add(file, 1)
    file.begin(1, [secrets.token_bytes(50_000)] * 2)
    assert file.leaves(0, 1) == before
    with pytest.raises(StoreBrokenError):
        file.leaves(1, 2)
    # A kill here: the next start drops it.
    killed = path.with_name("killed")
    killed.write_bytes(path.read_bytes())
    entries, dropped = read(killed)
    assert entries == before
    assert dropped > 100_000
    # And what comes next is shorter.
    after = add(file, 1, 3)
    file.close()
    assert read(path) == (before + after, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("size", [20, 50_000])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_full_disk_takes_nothing_of_a_batch_and_heals(
    path: Path, monkeypatch: pytest.MonkeyPatch, part: int, code: int, size: int
) -> None:
    file = made(path)
    before = add(file, 2)
    length = path.stat().st_size
    write = os.pwrite
    calls = 0

    def some(descriptor: int, data: bytes, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls > part:
            raise OSError(code, "full")
        return write(descriptor, data[:70], at)

    monkeypatch.setattr(os, "pwrite", some)
    with pytest.raises(StoreFullError):
        add(file, 2, size)
    monkeypatch.undo()
    assert path.stat().st_size == length
    after = add(file, 1)
    file.close()
    assert read(path) == (before + after, 0)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fails_is_never_asked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = made(path)
    before = add(file, 2)

    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreBrokenError, match="EIO"):
        add(file, 1)
    monkeypatch.undo()
    with pytest.raises(StoreBrokenError, match="has failed"):
        add(file, 1)
    assert file.leaves(0, 2) == before
    assert file.mark.size == 2
    file.close()


def test_without_early_writing_the_sync_does_it_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entryfile.ctypes, "CDLL", lambda _name: object())
    start = entryfile._writeback()
    monkeypatch.setattr(entryfile, "_start_writing", start)
    file = made(path)
    leaves = add(file, 3, 50_000)
    file.close()
    assert read(path) == (leaves, 0)


def test_two_do_not_write_one_file(path: Path) -> None:
    file = made(path)
    leaves = add(file, 1)
    other = EntryFile(path)
    other.resume(NOTHING, ())
    with pytest.raises(StoreBrokenError, match="another audit service writes the log"):
        add(other, 1)
    # What it is about to write is not dropped by who comes meanwhile.
    file.begin(1, [secrets.token_bytes(50_000)] * 2)
    late = EntryFile(path)
    with pytest.raises(StoreBrokenError, match="another audit service writes the log"):
        late.resume(NOTHING, ())
    late.close()
    leaves += add(file, 1)
    file.close()
    with pytest.raises(StoreBrokenError, match="has written the log"):
        add(other, 1)
    other.close()
    assert read(path) == (leaves, 0)


# --- the form -----------------------------------------------------------------------------------


def record(leaves: list[bytes]) -> bytes:
    begun = begin_record(IDENTITY, 7, leaves, 2, 99)
    ids, prints = bytes(16 * len(leaves)), bytes(16 * len(leaves))
    return begun + end_record(begun, leaves, leaf_hashes(leaves), ids, prints, bytes(32))[0]


def test_a_record_reads_as_it_was_written() -> None:
    leaves = [b"", b"a", bytes(65_535)]
    found = parse_record(IDENTITY, record(leaves))
    assert (found.head.first, found.head.puts, found.head.before) == (7, 2, 99)
    assert record_leaves(found) == leaves
    assert found.hashes == b"".join(leaf_hashes(leaves))
    assert parse_start(file_start(IDENTITY)) == IDENTITY


@pytest.mark.parametrize(
    "bad",
    [
        lambda: begin_record(IDENTITY, 0, [], 0, 0),
        lambda: begin_record(IDENTITY, 0, [bytes(65_536)], 0, 0),
    ],
)
def test_what_no_record_can_hold_is_not_begun(bad: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match="65,535"):
        bad()


def test_other_bytes_are_no_record() -> None:
    data = record([b"a"])
    for wrong in (data[:-1], data + b"\0", data[1:], b"", data[:HEAD_BYTES]):
        with pytest.raises(RecordError):
            parse_record(IDENTITY, wrong)
    with pytest.raises(RecordError):
        parse_head(bytes(16), data[:HEAD_BYTES])
    for wrong in (b"", file_start(IDENTITY)[:-1], b"x" + file_start(IDENTITY)[1:]):
        with pytest.raises(RecordError):
            parse_start(wrong)
