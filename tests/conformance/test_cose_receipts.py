"""COSE receipts, verified by two implementations that are not ours: python-cwt and go-cose."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import cbor2
import pytest
from cwt import COSE, COSEKey, VerifyError

from sealward.tlog.cose import sign_receipt
from sealward.tlog.merkle import leaf_hash, verify_inclusion
from tests.support import tlog_go
from tests.support.tlog_logs import ORIGIN, entries, signer, tree_of

SIGNER = signer()
SIZES = (2, 3, 8, 9, 300)
GO_SOURCE = Path(__file__).parent / "cose_go"


def receipts(size: int) -> list[tuple[int, bytes, bytes]]:
    """The first, a middle and the last entry of a log: index, leaf, receipt."""
    leaves = entries(size)
    tree = tree_of(leaves)
    return [
        (
            index,
            leaves[index],
            sign_receipt(SIGNER, size, index, b"".join(tree.inclusion(index, size)), tree.root()),
        )
        for index in sorted({0, size // 2, size - 1})
    ]


@pytest.mark.parametrize("size", SIZES)
def test_python_cwt_reads_and_verifies(size: int) -> None:
    root = tree_of(entries(size)).root()
    key = COSEKey.new({1: 1, 2: SIGNER.key_id, 3: -8, -1: 6, -2: SIGNER.verifier.public_key})
    for index, leaf, receipt in receipts(size):
        protected, unprotected, payload = COSE.new().decode_with_headers(
            receipt, key, detached_payload=root
        )
        assert protected == {1: -8, 4: SIGNER.key_id, 15: {1: ORIGIN}, 395: 1}
        assert payload == root
        found = cbor2.loads(unprotected[396][-1][0])
        assert found[:2] == [size, index]
        verify_inclusion(leaf_hash(leaf), index, size, found[2], root)
        with pytest.raises(VerifyError):
            COSE.new().decode(receipt, key, detached_payload=bytes(32))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlog_go.build(tmp_path_factory.mktemp("cose-go"), source=GO_SOURCE)


def go(program: Path, folder: Path, receipt: bytes, leaf: bytes, vkey: str) -> tuple[int, str]:
    for name, content in (("receipt", receipt), ("leaf", leaf), ("vkey", vkey.encode())):
        (folder / name).write_bytes(content)
    arguments: Sequence[str] = [f"-{name}={folder / name}" for name in ("receipt", "leaf", "vkey")]
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("size", SIZES)
def test_go_cose_reads_and_verifies(program: Path, tmp_path: Path, size: int) -> None:
    for index, leaf, receipt in receipts(size):
        status, output = go(program, tmp_path, receipt, leaf, SIGNER.verifier.vkey)
        assert (status, output) == (0, f"OK: entry {index} of {size} in {ORIGIN}\n")


def test_go_cose_finds_what_was_changed(program: Path, tmp_path: Path) -> None:
    _, leaf, receipt = receipts(300)[1]
    vkey = SIGNER.verifier.vkey
    flipped = leaf[:-1] + bytes([leaf[-1] ^ 1])
    assert go(program, tmp_path, receipt, flipped, vkey)[0] == 1
    assert go(program, tmp_path, receipt, leaf, signer(2).verifier.vkey)[0] == 1
    assert go(program, tmp_path, receipt, leaf, signer(1, "other.example").verifier.vkey)[0] == 1
    for at in (5, 60, 120, len(receipt) - 1):
        changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        assert go(program, tmp_path, changed, leaf, vkey)[0] == 1, at
