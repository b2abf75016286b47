from hashlib import sha256

import pytest

from sealward.tlog.errors import LeafError
from sealward.tlog.leaf import (
    MIN_LEAF_SIZE,
    MIN_SEALED_SIZE,
    NO_DIGEST,
    PREFIX_SIZE,
    Outcome,
    binding,
    leaf_prefix,
    parse_leaf,
)

SALT, REQUEST, RESPONSE, MODEL = (sha256(x).digest() for x in (b"s", b"q", b"r", b"m"))


def test_binding_is_what_the_design_says() -> None:
    expected = sha256(
        b"sealward/binding/v1\n" + SALT + REQUEST + RESPONSE + MODEL + b"\x00"
    ).digest()
    assert binding(SALT, REQUEST, RESPONSE, MODEL, Outcome.OK) == expected
    assert binding(SALT, REQUEST, RESPONSE, MODEL, 0) == expected


def test_missing_parts_are_zero_bytes() -> None:
    assert binding(SALT, REQUEST, b"", b"", Outcome.DENIED) == binding(
        SALT, REQUEST, NO_DIGEST, NO_DIGEST, Outcome.DENIED
    )
    expected = b"sealward/binding/v1\n" + SALT + REQUEST + bytes(64) + b"\x01"
    assert binding(SALT, REQUEST, b"", b"", Outcome.DENIED) == sha256(expected).digest()


def test_every_part_counts() -> None:
    other = bytes(31) + b"\x01"
    bindings = {
        binding(SALT, REQUEST, RESPONSE, MODEL, Outcome.OK),
        binding(other, REQUEST, RESPONSE, MODEL, Outcome.OK),
        binding(SALT, other, RESPONSE, MODEL, Outcome.OK),
        binding(SALT, REQUEST, other, MODEL, Outcome.OK),
        binding(SALT, REQUEST, RESPONSE, other, Outcome.OK),
        binding(SALT, RESPONSE, REQUEST, MODEL, Outcome.OK),
        binding(SALT, REQUEST, RESPONSE, MODEL, Outcome.DENIED),
        binding(SALT, REQUEST, RESPONSE, MODEL, Outcome.FAILED),
    }
    assert len(bindings) == 8


def test_wrong_lengths_have_no_binding() -> None:
    for arguments in (
        (b"", REQUEST, RESPONSE, MODEL, 0),
        (SALT[:31], REQUEST, RESPONSE, MODEL, 0),
        (SALT, REQUEST + b"x", RESPONSE, MODEL, 0),
        (SALT, REQUEST, RESPONSE[:5], MODEL, 0),
        (SALT, REQUEST, RESPONSE, MODEL[:31], 0),
        (SALT, REQUEST, RESPONSE, MODEL, 3),
    ):
        with pytest.raises(ValueError, match=r"32 bytes|Outcome"):
            binding(*arguments)


def test_leaf_layout() -> None:
    prefix = leaf_prefix(b"e" * 16, b"b" * 32)
    assert prefix == b"\x01" + b"e" * 16 + b"b" * 32
    assert len(prefix) == PREFIX_SIZE
    sealed = bytes(range(MIN_SEALED_SIZE))
    leaf = parse_leaf(prefix + sealed)
    assert (leaf.event_id, leaf.binding, leaf.sealed) == (b"e" * 16, b"b" * 32, sealed)
    assert len(prefix + sealed) == MIN_LEAF_SIZE


@pytest.mark.parametrize(("event_id", "bound"), [(b"", b"b" * 32), (b"e" * 16, b"b" * 31)])
def test_prefix_lengths_are_checked(event_id: bytes, bound: bytes) -> None:
    with pytest.raises(ValueError, match="bytes long"):
        leaf_prefix(event_id, bound)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01" + bytes(MIN_LEAF_SIZE - 2),
        b"\x02" + bytes(MIN_LEAF_SIZE),
        b"\x00" + bytes(MIN_LEAF_SIZE),
        b"\x01" + bytes(65_535),
    ],
)
def test_what_is_no_leaf_is_refused(data: bytes) -> None:
    with pytest.raises(LeafError):
        parse_leaf(data)
