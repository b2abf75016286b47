"""COSE receipts (RFC 9942): every flipped bit is found, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sealward.tlog import cbor
from sealward.tlog.cose import parse_receipt, sign_receipt, to_be_signed, verify_receipt
from sealward.tlog.errors import CborError, CoseError, SignatureError, TlogError
from sealward.tlog.merkle import Tree
from tests.support.tlog_logs import entries, signer, tree_of

SIGNER = signer()
LEAVES = entries(11)
TREE = tree_of(LEAVES)


def receipt(index: int, tree: Tree = TREE) -> bytes:
    path = b"".join(tree.inclusion(index, tree.size))
    return sign_receipt(SIGNER, tree.size, index, path, tree.root())


@pytest.mark.parametrize("index", range(len(LEAVES)))
def test_every_leaf_has_a_receipt_that_holds(index: int) -> None:
    found = verify_receipt(receipt(index), LEAVES[index], [SIGNER.verifier])
    assert (found.index, found.size, found.origin) == (index, len(LEAVES), SIGNER.name)


def test_the_bytes_are_those_of_the_rfc() -> None:
    made = receipt(6)
    message = cbor.decode(made)
    assert made[0] == 0xD2  # 6.18
    protected, unprotected, payload, signature = message.value
    header = cbor.decode(protected)
    assert header == {1: -8, 4: SIGNER.key_id, 15: {1: SIGNER.name}, 395: 1}
    assert payload is None
    (proof,) = unprotected[396][-1]
    assert cbor.decode(proof) == (11, 6, tuple(TREE.inclusion(6, 11)))
    assert SIGNER.verifier.verify(to_be_signed(protected, TREE.root()), signature)


def test_the_wrong_leaf_and_the_wrong_key_are_refused() -> None:
    with pytest.raises(SignatureError):
        verify_receipt(receipt(3), LEAVES[4], [SIGNER.verifier])
    with pytest.raises(SignatureError):
        verify_receipt(receipt(3), LEAVES[3], [signer(2).verifier])
    with pytest.raises(SignatureError):
        verify_receipt(receipt(3), LEAVES[3], [signer(1, "other.example/log").verifier])


def test_one_entry_has_no_receipt() -> None:
    one = tree_of(LEAVES[:1])
    with pytest.raises(CoseError, match="one entry"):
        sign_receipt(SIGNER, 1, 0, b"", one.root())


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_every_flipped_bit_of_the_receipt_is_found_or_leads_to_the_same_root() -> None:
    made = receipt(6)
    passed = []
    for changed in flips(made):
        try:
            found = verify_receipt(changed, LEAVES[6], [SIGNER.verifier])
        except TlogError:
            continue
        passed.append((found.size, found.index))
    # The size alone is not under the signature: every size that gives the same path and root does.
    assert passed
    assert {index for _, index in passed} == {6}
    assert all(len(TREE.inclusion(6, 11)) == len(tree_path(size)) for size, _ in passed)


def tree_path(size: int) -> list[bytes]:
    return tree_of(entries(size)).inclusion(6, size)


def test_every_flipped_bit_of_the_leaf_is_found() -> None:
    made = receipt(2)
    for changed in flips(LEAVES[2]):
        with pytest.raises(SignatureError):
            verify_receipt(made, changed, [SIGNER.verifier])


def _changed(**parts: object) -> bytes:
    tag = cbor.decode(receipt(6))
    protected, unprotected, payload, signature = tag.value
    values = {
        "protected": protected, "unprotected": unprotected, "payload": payload,
        "signature": signature, **parts,
    }  # fmt: skip
    return cbor.encode(cbor.Tag(parts.get("tag", 18), tuple(list(values.values())[:4])))  # type: ignore[arg-type]


PROOF = cbor.decode(receipt(6)).value[1][396][-1][0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(20_000),
        receipt(6) + b"\0",
        receipt(6)[1:],
        _changed(tag=17),
        _changed(payload=TREE.root()),
        _changed(signature=b"x" * 63),
        _changed(signature=7),
        _changed(unprotected={}),
        _changed(unprotected={396: {-1: ()}}),
        _changed(unprotected={396: {-1: (PROOF, PROOF)}}),
        _changed(unprotected={396: {-1: (PROOF,)}, 1: -8}),
        _changed(unprotected={396: {-1: (cbor.encode((11, 6)),)}}),
        _changed(unprotected={396: {-1: (cbor.encode((11, 6, ())),)}}),
        _changed(unprotected={396: {-1: (cbor.encode((11, -6, (bytes(32),))),)}}),
        _changed(unprotected={396: {-1: (cbor.encode((11, 6, (bytes(31),))),)}}),
        _changed(unprotected={396: {-1: (cbor.encode((11, 6, (bytes(32),) * 64)),)}}),
        _changed(protected=cbor.encode({1: -8, 4: b"kid!", 395: 1})),
        _changed(protected=cbor.encode({1: -7, 4: b"kid!", 15: {1: "x"}, 395: 1})),
        _changed(protected=cbor.encode({1: -8, 4: b"kid!", 15: {1: "x"}, 395: 2})),
        _changed(protected=cbor.encode({1: -8, 4: b"kid!", 15: {1: 1}, 395: 1})),
    ],
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(CoseError):
        parse_receipt(data)


@pytest.mark.parametrize(
    "value",
    [0, 23, 24, 255, 256, 65_535, 65_536, (1 << 64) - 1, -1, -24, -25, -(1 << 64), b"", b"x" * 300,
     "", "grün", None, (), (1, (2, b"3")), {}, {1: {2: "3"}, -1: b"", "a": None},
     cbor.Tag(18, (1,))],
)  # fmt: skip
def test_cbor_there_and_back(value: object) -> None:
    assert cbor.decode(cbor.encode(value)) == value


def test_cbor_is_that_of_the_rfc() -> None:
    # RFC 8949 appendix A, and the order of section 4.2.1.
    assert cbor.encode(1_000_000_000_000).hex() == "1b000000e8d4a51000"
    assert cbor.encode(-1000).hex() == "3903e7"
    mixed = cbor.encode({"aa": 1, -1: 2, "z": 3, 100: 4, 10: 5})
    assert mixed == bytes.fromhex("a5 0a05 186404 2002 617a03 62616101")


@pytest.mark.parametrize(
    "text",
    [
        "1800", "1817", "190001", "1a00000001", "1b0000000000000001", "1c", "5f41ff00", "9f00ff",
        "40 00", "41", "5bffffffffffffffff", "9bffffffffffffffff", "bbffffffffffffffff", "61ff",
        "a201000100", "a202000100", "a1400000", "f4", "f7", "fb0000000000000000", "c2", "", "1f",
        "81818181818181818100",
    ],
)  # fmt: skip
def test_cbor_has_one_spelling(text: str) -> None:
    with pytest.raises(CborError):
        cbor.decode(bytes.fromhex(text))


@pytest.mark.parametrize("value", [True, 1.5, object(), 1 << 64])
def test_cbor_of_what_has_none_is_refused(value: object) -> None:
    with pytest.raises(CborError):
        cbor.encode(value)
