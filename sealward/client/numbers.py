"""The file `sequence`: how far the numbers of each session have come.

A heading, then one slot a session. It is locked while somebody counts, by every process that shares
the folder, and the lock covers the list of calls as well (calls.py). The disk is told of numbers
ahead of their use, a few hundred at a time, so that after a stop without warning the numbers go on
above every one that can have been sent.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sealward.client.errors import ProfileError

_MAGIC = b"sealseq2"
# Tag of the token, session id (zeroes: not known), number of the last call, number up to which the
# disk knows, boot of the machine in which that was, when it was last used (nanoseconds).
_SLOT = struct.Struct(">8s16sQQ8sQ")
_SLOTS = 256
_RESERVE = 256
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Slot:
    """What is known of one session."""

    tag: bytes
    session: bytes = bytes(16)
    count: int = 0
    reserved: int = 0
    boot: bytes = bytes(8)
    used: int = 0

    @property
    def label(self) -> str:
        """The session's public id; before it is known, what stands for it in the list."""
        return self.session.hex() if any(self.session) else f"~{self.tag.hex()}"

    def count_on(self, boot: bytes) -> int:
        """Return the next number. What the disk may have forgotten since a boot is passed over."""
        if self.boot != boot:
            self.boot, self.count = boot, max(self.count, self.reserved)
        self.count += 1
        return self.count


class Numbers:
    """The file `sequence` while it is locked: a heading, then one slot a session."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        data = os.pread(descriptor, len(_MAGIC) + _SLOTS * _SLOT.size, 0)
        if len(data) == 16:
            # Of an earlier version: tag and count of the one session that it knew.
            self._slots = [Slot(data[:8], count=int.from_bytes(data[8:], "big"))]
            os.ftruncate(descriptor, 0)
            self._write_all()
            return
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise ProfileError(f"{path} is damaged: log in again, then remove it")
        body = data[len(_MAGIC) :]
        whole = len(body) - len(body) % _SLOT.size
        self._slots = [Slot(*fields) for fields in _SLOT.iter_unpack(body[:whole])]
        if len(data) < len(_MAGIC):
            self._write_all()

    def slot(self, tag: bytes) -> Slot:
        """Return the slot of a session; the one that was not used for longest makes room."""
        for slot in self._slots:
            if slot.tag == tag:
                return slot
        slot = Slot(tag)
        if len(self._slots) < _SLOTS:
            self._slots.append(slot)
        else:
            oldest = min(range(_SLOTS), key=lambda at: self._slots[at].used)
            self._slots[oldest] = slot
        return slot

    def keep(self, slot: Slot) -> None:
        """Write a slot; on the disk when its numbers reach what the disk knows."""
        at = next(n for n, held in enumerate(self._slots) if held is slot)
        durable = slot.count <= slot.reserved
        if not durable:
            slot.reserved = slot.count + _RESERVE - 1
        os.pwrite(self._descriptor, _packed(slot), len(_MAGIC) + at * _SLOT.size)
        if not durable:
            os.fsync(self._descriptor)

    def _write_all(self) -> None:
        os.pwrite(self._descriptor, _MAGIC + b"".join(map(_packed, self._slots)), 0)


@contextmanager
def locked(path: Path) -> Iterator[Numbers]:
    """Open and lock the file for the length of a block; raise OSError, or ProfileError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Numbers(descriptor, path)
    finally:
        os.close(descriptor)


def _packed(slot: Slot) -> bytes:
    return _SLOT.pack(slot.tag, slot.session, slot.count, slot.reserved, slot.boot, slot.used)


def tag_of(token: str) -> bytes:
    """Return what stands for a token in the file: it does not lead back to it."""
    return sha256(b"sealward/sequence/v1\n" + token.encode()).digest()[:8]


def boot_of_machine() -> bytes:
    """Tell one boot of the machine from another; the same always where the system does not say."""
    try:
        return sha256(_BOOT_FILE.read_bytes()).digest()[:8]
    except OSError:
        return bytes(8)
