"""Sealed objects under change: nothing but the message itself opens, and nothing else is raised."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import FRAME_BYTES, ObjectSealer, open_object, seal_object
from tests.support.esdk import sdk_open, sdk_seal

KEY = bytes(range(32))
CONTEXT = EncryptionContext("default", "job", "0a1b2c")
TEXT = bytes(range(256)) * 520
SEALED = seal_object(KEY, CONTEXT, TEXT)
HEADER = ObjectSealer(KEY).header_size(CONTEXT)

contexts = st.builds(
    EncryptionContext,
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@:/+=-]{0,191}", fullmatch=True),
)
places = st.integers(0, len(SEALED))
# Half of all changes are in the header, which is a small part of the message.
spots = st.one_of(st.integers(0, HEADER + 24), places)


def refused(sealed: bytes, key: bytes = KEY, context: EncryptionContext = CONTEXT) -> None:
    with pytest.raises(SealBrokenError):
        open_object(key, context, sealed)


@given(st.binary(max_size=4096), st.sampled_from([0, 1, FRAME_BYTES, 3 * FRAME_BYTES]), contexts)
def test_both_ways_with_the_sdk(tail: bytes, more: int, context: EncryptionContext) -> None:
    text = bytes(more) + tail
    pairs = dict(context.pairs(OBJECT_SCHEMA))
    opened, header = sdk_open(KEY, seal_object(KEY, context, text))
    assert (opened, header.encryption_context) == (text, pairs)
    assert open_object(KEY, context, sdk_seal(KEY, pairs, text)) == text


@given(spots, st.integers(1, 255))
def test_a_changed_byte(at: int, flip: int) -> None:
    assume(at < len(SEALED))
    refused(SEALED[:at] + bytes([SEALED[at] ^ flip]) + SEALED[at + 1 :])


@given(spots, spots)
def test_a_piece_taken_out(begin: int, end: int) -> None:
    assume(begin < end)
    refused(SEALED[:begin] + SEALED[end:])


@given(spots, st.binary(min_size=1, max_size=300))
def test_a_piece_put_in_or_over_it(at: int, piece: bytes) -> None:
    refused(SEALED[:at] + piece + SEALED[at:])
    over = SEALED[:at] + piece + SEALED[at + len(piece) :]
    assume(over != SEALED)
    refused(over)


@given(spots, spots, st.integers(1, 2 * FRAME_BYTES))
def test_two_pieces_that_change_places(one: int, other: int, length: int) -> None:
    first, second = sorted((one, other))
    assume(first + length <= second)
    mixed = b"".join(
        (
            SEALED[:first], SEALED[second : second + length], SEALED[first + length : second],
            SEALED[first : first + length], SEALED[second + length :],
        )
    )  # fmt: skip
    assume(mixed != SEALED)
    refused(mixed)


@given(st.binary(max_size=1000))
def test_bytes_that_are_no_message(data: bytes) -> None:
    refused(data)
    refused(SEALED[:3] + data)
    refused(SEALED[:HEADER] + data)


@given(contexts, contexts, st.binary(max_size=100))
def test_another_context(one: EncryptionContext, other: EncryptionContext, text: bytes) -> None:
    assume(one != other)
    sealed = seal_object(KEY, one, text)
    assert open_object(KEY, one, sealed) == text
    refused(sealed, context=other)


@given(st.binary(min_size=32, max_size=32))
def test_another_key(key: bytes) -> None:
    assume(key != KEY)
    refused(SEALED, key=key)
