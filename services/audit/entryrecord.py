r"""The records of `log.entries`: one a batch, in the order of the log.

    file   = "sealward/entries/v1\n" || identity[16] || CRC-32 of what is before[4], then records
    record = head || leaves || table || end
    head   = 0xA75EA15E || count[4] || index of the first entry[8] || bytes of the leaves[4]
             || puts[4] || check of the record before[4]
             || CRC-32 of the identity and what is before[4] || 0xA5
    leaves = framed as in framing.py, which is a C2SP entry bundle's form too
    table  = length of each leaf[2] || leaf hashes[32] || event ids[16] || fingerprints[16]
    end    = root of the tree with these entries[32] || check[4] || 0xA5

Numbers are big-endian. `puts` is how often named values of the log had been put by then: it tells
when those beside this file are older than it. The check is the CRC-32 of everything in the record
before it. The identity is drawn for each file, so that no record of another one is taken for one of
this. A CRC tells torn writes and failing disks; who changes a record on purpose is found by the
tree.

Head and end close with a byte that is not zero, and no 512 bytes of a record are all zero: what a
disk did not get to write reads as zeros or is not there, and can be told from what was changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from sealward.tlog.merkle import HASH_SIZE
from services.audit.framing import unframed
from services.audit.store import StoreBrokenError

IDENTITY_BYTES = 16
ID_BYTES = 16
MAGIC = b"\xa7\x5e\xa1\x5e"
FIRST_CHECK = 0
"""What stands for the check of the record before the first one."""

_NAME = b"sealward/entries/v1\n"
_CRC = struct.Struct(">I")
_HEAD = struct.Struct(">4sIQIII")
_CLOSING = b"\xa5"
_CLOSED = struct.Struct(">IB")
START_BYTES = len(_NAME) + IDENTITY_BYTES + _CRC.size
HEAD_BYTES = _HEAD.size + _CLOSED.size
END_BYTES = HASH_SIZE + _CLOSED.size
ROW_BYTES = 2 + HASH_SIZE + 2 * ID_BYTES
"""What the table has for each entry."""
_MOST_BYTES = (1 << 32) - 1
_SECTOR = 512


class RecordError(Exception):
    """These bytes are not what they should be. Carries no data."""


@dataclass(frozen=True, slots=True)
class RecordHead:
    """What a record begins with. `length` counts the bytes of its leaves, with their frames."""

    count: int
    first: int
    length: int
    puts: int
    before: int

    @property
    def bytes(self) -> int:
        """The bytes of the whole record."""
        return HEAD_BYTES + self.length + ROW_BYTES * self.count + END_BYTES

    @property
    def table(self) -> int:
        """Where the table begins, from the record's first byte."""
        return HEAD_BYTES + self.length

    @property
    def hashes(self) -> int:
        """Where the leaf hashes begin, from the record's first byte."""
        return self.table + 2 * self.count


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record that was checked. `framed`, `hashes`, `ids` and `prints` are joined."""

    head: RecordHead
    framed: bytes
    hashes: bytes
    ids: bytes
    prints: bytes
    root: bytes
    check: int


def file_start(identity: bytes) -> bytes:
    """Return what a file begins with."""
    start = _NAME + identity
    return start + _CRC.pack(crc32(start))


def parse_start(data: bytes) -> bytes:
    """Return the identity from a file's first START_BYTES; raise RecordError."""
    start, check = data[: -_CRC.size], data[-_CRC.size :]
    if len(data) != START_BYTES or start[:-IDENTITY_BYTES] != _NAME:
        raise RecordError("not a file of entries")
    if _CRC.pack(crc32(start)) != check:
        raise RecordError("the first bytes were changed")
    return start[-IDENTITY_BYTES:]


def begin_record(
    identity: bytes, first: int, leaves: Sequence[bytes], puts: int, before: int
) -> bytes:
    """Return head and leaves of a record; raise ValueError for leaves over 65,535 bytes."""
    count = len(leaves)
    lengths = [*map(len, leaves)]
    length = sum(lengths) + 2 * count
    if not count or length > _MOST_BYTES or max(lengths) > 0xFFFF:
        raise ValueError("a record holds entries of at most 65,535 bytes")
    frames = struct.pack(f">{count}H", *lengths)
    parts = [b""] * (2 * count + 1)
    parts[1::2] = [frames[at : at + 2] for at in range(0, 2 * count, 2)]
    parts[2::2] = leaves
    fields = _HEAD.pack(MAGIC, count, first, length, puts, before)
    parts[0] = fields + _CLOSED.pack(crc32(fields, crc32(identity)), _CLOSING[0])
    return b"".join(parts)


def end_record(
    begun: bytes,
    leaves: Sequence[bytes],
    hashes: Sequence[bytes],
    ids: bytes,
    prints: bytes,
    root: bytes,
) -> tuple[bytes, int]:
    """Return table and end of a record that was begun so, and its check."""
    lengths = struct.pack(f">{len(leaves)}H", *map(len, leaves))
    rest = b"".join((lengths, *hashes, ids, prints, root))
    check = crc32(rest, crc32(begun))
    return rest + _CLOSED.pack(check, _CLOSING[0]), check


def parse_head(identity: bytes, data: bytes) -> RecordHead:
    """Return the head from a record's first HEAD_BYTES; raise RecordError."""
    if len(data) != HEAD_BYTES:
        raise RecordError("no head of a record")
    magic, count, first, length, puts, before = _HEAD.unpack(data[: _HEAD.size])
    closed = _CLOSED.pack(crc32(data[: _HEAD.size], crc32(identity)), _CLOSING[0])
    if magic != MAGIC or data[_HEAD.size :] != closed:
        raise RecordError("no head of a record")
    if not count or length < 2 * count:
        raise RecordError("a head that no record has")
    return RecordHead(count, first, length, puts, before)


def parse_record(identity: bytes, data: bytes) -> Record:
    """Return what a whole record holds once its check is found right; raise RecordError."""
    head = parse_head(identity, data[:HEAD_BYTES])
    if len(data) != head.bytes:
        raise RecordError("not the length of the record")
    check = crc32(memoryview(data)[: -_CLOSED.size])
    if data[-_CLOSED.size :] != _CLOSED.pack(check, _CLOSING[0]):
        raise RecordError("not what was written")
    hashes = head.hashes
    ids = hashes + HASH_SIZE * head.count
    prints = ids + ID_BYTES * head.count
    end = prints + ID_BYTES * head.count
    return Record(
        head,
        data[HEAD_BYTES : head.table],
        data[hashes:ids],
        data[ids:prints],
        data[prints:end],
        data[end : end + HASH_SIZE],
        check,
    )


def record_leaves(record: Record) -> list[bytes]:
    """Return the leaves of a record; raise RecordError."""
    try:
        leaves = unframed(record.framed, record.head.count)
    except StoreBrokenError:
        raise RecordError("not the leaves of the record") from None
    if sum(map(len, leaves)) + 2 * len(leaves) != len(record.framed):
        raise RecordError("not the leaves of the record")
    return leaves


def is_unfinished(data: bytes, at: int, length: int) -> bool:
    """Tell whether `data`, found at byte `at` where `length` bytes belong, was never written whole.

    It ends too early, its last byte is missing, or a sector of the disk holds nothing of it.
    """
    if len(data) < length or not data[-1]:
        return True
    begin = 0
    while begin < length:
        end = min(length, begin + _SECTOR - (at + begin) % _SECTOR)
        if not any(data[begin:end]):
            return True
        begin = end
    return False
