"""Where a sealed object is damaged: the first part that does not verify."""

from __future__ import annotations

import secrets

import pytest

from sealward.seal.context import EncryptionContext
from sealward.seal.damage import Damage, find_age_damage, find_damage
from sealward.seal.objects import FRAME_BYTES, ObjectSealer

CONTEXT = EncryptionContext("default", "keystore", "d")
SEALER = ObjectSealer(secrets.token_bytes(32))
HEADER = SEALER.header_size(CONTEXT)
STRIDE = FRAME_BYTES + 32


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 200_000])
def test_what_is_whole_has_no_damage(size: int) -> None:
    assert find_damage(SEALER, CONTEXT, SEALER.seal(CONTEXT, bytes(size))) is None


@pytest.mark.parametrize("size", [0, 10, FRAME_BYTES, 150_000])
def test_every_flipped_bit_is_in_the_part_that_is_named(size: int) -> None:
    sealed = SEALER.seal(CONTEXT, secrets.token_bytes(size))
    for place in {0, 1, HEADER - 1, HEADER, HEADER + 5, len(sealed) - 1} | {
        secrets.randbelow(len(sealed)) for _ in range(200)
    }:
        changed = bytearray(sealed)
        changed[place] ^= 1 << secrets.randbelow(8)
        found = find_damage(SEALER, CONTEXT, bytes(changed))
        assert found is not None
        if found.end > found.start:
            assert found.start <= place < found.end or found.part == "behind its end"
            assert found.end - found.start <= max(STRIDE, HEADER) or place < found.end
        else:
            # A frame that says it is a regular one ends later than the file does.
            assert place >= HEADER


def test_every_cut_is_named() -> None:
    sealed = SEALER.seal(CONTEXT, bytes(100_000))
    for length in (0, 1, HEADER - 1, HEADER, HEADER + 1, HEADER + STRIDE, len(sealed) - 1):
        found = find_damage(SEALER, CONTEXT, sealed[:length])
        assert found is not None
        assert (found.start, found.end) == (length, length)
    assert find_damage(SEALER, CONTEXT, sealed + b"more") == Damage(
        len(sealed), len(sealed) + 4, "behind its end"
    )


def test_another_key_or_context_is_a_broken_header() -> None:
    sealed = SEALER.seal(CONTEXT, b"x")
    header = Damage(0, HEADER, "header")
    assert find_damage(ObjectSealer(bytes(32)), CONTEXT, sealed) == header
    assert find_damage(SEALER, CONTEXT.about("e"), sealed) == header


def test_how_it_is_said() -> None:
    assert str(Damage(0, 10, "header")) == "bytes 0 to 9 (header) do not verify"
    assert str(Damage(7, 7, "frame 1")) == "it ends at byte 7, in the middle of its frame 1"


def test_an_age_file_that_may_only_have_another_secret_is_not_called_damaged() -> None:
    age = b"age-encryption.org/v1\n-> X25519 a\nb\n--- mac\npayload"
    assert find_age_damage(age, "No matching keys found") is None
    assert find_age_damage(age, "Decryption failed") is None
    assert find_age_damage(age, "Excessive work parameter for passphrase.") is None
    assert find_age_damage(age, "decryption error") == Damage(len(age) - 7, len(age), "payload")
    assert find_age_damage(age, "Header MAC is invalid") == Damage(0, len(age) - 7, "header")
    assert find_age_damage(b"nothing", "Header is invalid") == Damage(0, 7, "header")
