"""Leaves of a batch as one value: each is a big-endian uint16 length and the leaf."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from services.audit.store import StoreBrokenError

_LENGTH = struct.Struct(">H")


def framed(leaves: Sequence[bytes]) -> bytes:
    """Join leaves, each of at most 65,535 bytes."""
    return b"".join([part for leaf in leaves for part in (_LENGTH.pack(len(leaf)), leaf)])


def unframed(joined: bytes, count: int) -> list[bytes]:
    """Return the first `count` leaves; raise StoreBrokenError when they are not there."""
    found = []
    at = 0
    for _ in range(count):
        begin = at + 2
        # A length beyond the end shows one step later, or in the check below.
        at = begin + int.from_bytes(joined[at:begin], "big")
        found.append(joined[begin:at])
    if at > len(joined):
        raise StoreBrokenError("entries are missing from the store")
    return found
