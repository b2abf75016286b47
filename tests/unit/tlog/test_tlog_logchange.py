"""Entries in clear: what is written is read back, and nothing else is."""

from __future__ import annotations

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.errors import LeafError
from sealward.tlog.logchange import (
    LogChange,
    LogFinal,
    LogKey,
    LogSuccessor,
    change_leaf,
    format_change,
    parse_change,
    parse_change_leaf,
)
from sealward.tlog.note import Ed25519Signer

OLD, NEXT = "sealward.local/d/default/2026", "sealward.local/d/default/2027"
ONE, TWO, THREE = (Ed25519Signer(name, bytes([n]) * 32) for n, name in enumerate((OLD, OLD, NEXT)))
NOTE = sign_checkpoint(Checkpoint(OLD, 7, b"r" * 32), (ONE,))
CHANGES: list[LogChange] = [
    LogKey(OLD, ONE.vkey, TWO.vkey),
    LogFinal(OLD, NEXT, THREE.vkey),
    LogSuccessor(NEXT, OLD, NOTE),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: type(c).__name__)
def test_what_is_written_is_read_back(change: LogChange) -> None:
    leaf = change_leaf(b"i" * 16, change)
    assert leaf[0] == 2
    assert parse_change_leaf(leaf) == (b"i" * 16, change)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: type(c).__name__)
def test_no_byte_may_be_cut_off_or_added(change: LogChange) -> None:
    text = format_change(change)
    for end in range(len(text)):
        with pytest.raises(LeafError):
            parse_change(text[:end])
    for more in ("\n", " ", "x\n", "\n\n"):
        with pytest.raises(LeafError):
            parse_change(text + more)


def test_values_of_other_logs_are_refused() -> None:
    for wrong in (
        LogKey(OLD, ONE.vkey, THREE.vkey),
        LogKey(OLD, ONE.vkey, ONE.vkey),
        LogFinal(OLD, NEXT, ONE.vkey),
        LogFinal(OLD, OLD, ONE.vkey),
        LogSuccessor(NEXT, NEXT, NOTE),
        LogSuccessor(OLD, OLD, NOTE),
        LogFinal("a\nb", NEXT, THREE.vkey),
    ):
        with pytest.raises(LeafError):
            format_change(wrong)


def test_a_sealed_leaf_is_no_change() -> None:
    with pytest.raises(LeafError):
        parse_change_leaf(b"\x01" + bytes(200))
    with pytest.raises(LeafError):
        parse_change_leaf(b"\x02" + b"i" * 16 + b"\xff\n")
