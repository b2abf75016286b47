"""Sealed audit entries: layout, commitment, and agreement with Tink and with plain AES-GCM."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealward.seal import entries
from sealward.seal.entries import OVERHEAD_BYTES, EntryOpener, EntrySealer, segment_of
from sealward.seal.errors import LeaseExpiredError, SealBrokenError

KEY = bytes(range(32))
SEGMENT = b"segment1"
ORIGIN = "sealward.local/0a1b2c3d/default/2026"
PREFIX = b"\x01" + bytes(range(48))
SPAN = b"a span in OTLP bytes"


def sealer() -> EntrySealer:
    return EntrySealer(KEY, SEGMENT, ORIGIN)


def opener(key: bytes = KEY, segment: bytes = SEGMENT, origin: str = ORIGIN) -> EntryOpener:
    return EntryOpener(key, segment, origin)


@pytest.mark.parametrize("size", [0, 1, 900, 70_000])
def test_opens_what_it_sealed(size: int) -> None:
    plaintext = os.urandom(size)
    sealed = sealer().seal(PREFIX, plaintext)
    assert len(sealed) == size + OVERHEAD_BYTES
    assert segment_of(sealed) == SEGMENT
    assert opener().open(PREFIX, sealed) == plaintext


def test_the_layout_is_the_documented_one() -> None:
    """Opened here by hand, without this package and without Tink."""
    sealed = sealer().seal(PREFIX, SPAN)
    material = HKDF(hashes.SHA256(), 64, salt=None, info=b"sealward/audit-entry/v1").derive(KEY)
    assert sealed[:8] == SEGMENT
    assert sealed[8:40] == material[32:]
    assert sealed[40:45] == b"\x01\x00\x00\x00\x01"
    bound = PREFIX + SEGMENT + ORIGIN.encode()
    assert AESGCM(material[:32]).decrypt(sealed[45:57], sealed[57:], bound) == SPAN


def test_every_flipped_byte_is_refused() -> None:
    sealed = sealer().seal(PREFIX, SPAN)
    reader = opener()
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x80
        with pytest.raises(SealBrokenError):
            reader.open(PREFIX, bytes(changed))


def test_every_truncation_is_refused() -> None:
    sealed = sealer().seal(PREFIX, SPAN)
    for length in range(len(sealed)):
        with pytest.raises(SealBrokenError):
            opener().open(PREFIX, sealed[:length])
    with pytest.raises(SealBrokenError):
        opener().open(PREFIX, sealed + b"\x00")


def test_an_entry_is_bound_to_its_clear_part_segment_origin_and_key() -> None:
    sealed = sealer().seal(PREFIX, SPAN)
    other_segment = EntrySealer(KEY, b"segment2", ORIGIN).seal(PREFIX, SPAN)
    for reader, prefix, entry in (
        (opener(), PREFIX[:-1] + b"\xff", sealed),
        (opener(), PREFIX[:-1], sealed),
        (opener(), b"", sealed),
        (opener(segment=b"segment2"), PREFIX, sealed),
        (opener(origin=ORIGIN + "0"), PREFIX, sealed),
        (opener(key=bytes(32)), PREFIX, sealed),
        (opener(), PREFIX, other_segment),
        (opener(), PREFIX, SEGMENT + other_segment[8:]),
    ):
        with pytest.raises(SealBrokenError):
            reader.open(prefix, entry)


def test_the_commitment_is_checked_before_anything_is_decrypted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sealed = bytearray(sealer().seal(PREFIX, SPAN))
    sealed[8] ^= 1
    reader = opener()
    monkeypatch.setattr(reader, "_aead", None)
    with pytest.raises(SealBrokenError):
        reader.open(PREFIX, bytes(sealed))


def test_nonces_differ() -> None:
    writer = sealer()
    assert len({writer.seal(PREFIX, SPAN)[45:57] for _ in range(500)}) == 500


def test_a_segment_key_seals_so_many_entries_and_no_more() -> None:
    writer = EntrySealer(KEY, SEGMENT, ORIGIN, used=entries.MAX_ENTRIES - 2)
    writer.seal(PREFIX, SPAN)
    writer.seal(PREFIX, SPAN)
    assert writer.left == 0
    with pytest.raises(LeaseExpiredError):
        writer.seal(PREFIX, SPAN)


def test_arguments_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match="32"):
        EntrySealer(b"short", SEGMENT, ORIGIN)
    with pytest.raises(ValueError, match="8"):
        EntryOpener(KEY, b"segment", ORIGIN)
    with pytest.raises(ValueError, match="49"):
        sealer().seal(PREFIX + b"1", SPAN)
    with pytest.raises(SealBrokenError):
        segment_of(b"short")


def test_repr_shows_no_key() -> None:
    assert repr(sealer()) == "EntrySealer()"
    assert repr(opener()) == "EntryOpener()"
