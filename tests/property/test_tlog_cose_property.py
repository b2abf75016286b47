"""CBOR and COSE receipts: there and back, one spelling, no bytes that break the decoder."""

from __future__ import annotations

from typing import Any

import cbor2
from hypothesis import given
from hypothesis import strategies as st

from sealward.tlog import cbor
from sealward.tlog.cose import parse_receipt, sign_receipt, verify_receipt
from sealward.tlog.errors import CborError, CoseError
from tests.support.tlog_logs import entries, signer, tree_of

SIGNER = signer()
NUMBERS = st.integers(-(1 << 64), (1 << 64) - 1)
SCALARS = st.one_of(NUMBERS, st.binary(max_size=40), st.text(max_size=20), st.none())
KEYS = st.one_of(NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_values_come_back_and_another_reader_reads_the_same(value: Any) -> None:
    data = cbor.encode(value)
    try:
        assert cbor.decode(data) == value
    except CborError as error:
        assert "too deeply" in str(error)  # noqa: PT017 - the one thing that may be refused
    assert cbor2.loads(data) == _lists(value)


@given(st.binary(max_size=60))
def test_bytes_are_refused_or_have_one_spelling(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except CborError:
        return
    assert cbor.encode(value) == data


@given(st.binary(max_size=200))
def test_bytes_that_are_no_receipt_are_refused(data: bytes) -> None:
    try:
        parse_receipt(data)
    except CoseError:
        return
    raise AssertionError("drawn bytes are a receipt")


@given(st.integers(2, 300), st.data())
def test_every_leaf_of_every_log_has_a_receipt(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves = entries(size)
    tree = tree_of(leaves)
    path = b"".join(tree.inclusion(index, size))
    receipt = sign_receipt(SIGNER, size, index, path, tree.root())
    found = verify_receipt(receipt, leaves[index], [SIGNER.verifier])
    assert (found.index, found.size) == (index, size)


def _lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return value
