from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.errors import (
    ReceiptBindingError,
    ReceiptError,
    ReceiptEventError,
    ReceiptFormatError,
    ReceiptInclusionError,
    ReceiptSignatureError,
)
from sealward.tlog.leaf import NO_DIGEST, Outcome, binding, leaf_prefix
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.proof import TlogProof
from sealward.tlog.receipt import VerifiedReceipt, format_receipt, open_receipt, verify_receipt
from tests.support.tlog_logs import ORIGIN, entries, signer

SALT, REQUEST, RESPONSE, MODEL = (sha256(x).digest() for x in (b"s", b"q", b"r", b"m"))
EVENT = b"0123456789abcdef"
SEALED = bytes(range(100))
LEAF = leaf_prefix(EVENT, binding(SALT, REQUEST, RESPONSE, MODEL, Outcome.OK)) + SEALED


def receipt_for(leaf: bytes, index: int = 4, size: int = 11) -> bytes:
    leaves = entries(size)
    leaves[index] = leaf
    tree = Tree(leaf_hash(entry) for entry in leaves)
    checkpoint = sign_checkpoint(Checkpoint(ORIGIN, size, tree.root()), [signer()])
    return format_receipt(index, tree.inclusions(index, index + 1)[0], leaf, SALT, checkpoint)


RECEIPT = receipt_for(LEAF)


def verify(
    data: bytes = RECEIPT,
    request: bytes = REQUEST,
    response: bytes = RESPONSE,
    model: bytes = MODEL,
    outcome: Outcome | None = Outcome.OK,
    event_id: bytes | None = None,
    origin: str | None = None,
) -> VerifiedReceipt:
    return verify_receipt(
        data,
        vkeys=[signer().verifier],
        request_digest=request,
        response_digest=response,
        model_digest=model,
        outcome=outcome,
        event_id=event_id,
        origin=origin,
    )


def test_a_receipt_that_holds() -> None:
    verified = verify(event_id=EVENT, origin=ORIGIN)
    assert (verified.index, verified.event_id, verified.outcome) == (4, EVENT, Outcome.OK)
    assert (verified.checkpoint.origin, verified.checkpoint.size) == (ORIGIN, 11)
    assert verified.note.startswith(ORIGIN.encode())


def test_it_is_a_tlog_proof_with_salt_and_leaf() -> None:
    proof = TlogProof.parse(RECEIPT)
    assert proof.extra == SALT + LEAF
    assert proof.index == 4


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: verify(request=RESPONSE),
        lambda: verify(response=REQUEST),
        lambda: verify(response=b""),
        lambda: verify(model=NO_DIGEST),
        lambda: verify(outcome=Outcome.DENIED),
        lambda: verify(outcome=Outcome.FAILED),
        lambda: verify(outcome=None),
    ],
)
def test_another_call_is_refused(attempt: Callable[[], VerifiedReceipt]) -> None:
    with pytest.raises(ReceiptBindingError):
        attempt()


def test_another_event_is_refused() -> None:
    with pytest.raises(ReceiptEventError):
        verify(event_id=EVENT[::-1])


@pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.FAILED])
def test_errors_have_receipts_too(outcome: Outcome) -> None:
    leaf = leaf_prefix(EVENT, binding(SALT, REQUEST, b"", b"", outcome)) + SEALED
    data = receipt_for(leaf)
    assert verify(data, response=b"", model=b"", outcome=outcome).outcome is outcome
    assert verify(data, response=b"", model=b"", outcome=None).outcome is outcome
    with pytest.raises(ReceiptBindingError):
        verify(data, response=b"", model=b"", outcome=Outcome.OK)


def test_only_the_expected_log_counts() -> None:
    for vkeys in ([], [signer(2).verifier], [signer(1, "other.log").verifier]):
        with pytest.raises(ReceiptSignatureError):
            open_receipt(RECEIPT, vkeys)
    with pytest.raises(ReceiptSignatureError):
        open_receipt(RECEIPT, [signer().verifier], "another/origin")


def test_another_leaf_index_or_path_is_refused() -> None:
    proof = TlogProof.parse(RECEIPT)
    extra = proof.extra or b""
    for wrong in (
        replace(proof, index=5),
        replace(proof, index=11),
        replace(proof, path=proof.path[:-1]),
        replace(proof, path=proof.path[::-1]),
        replace(proof, extra=extra + b"\0"),
    ):
        with pytest.raises(ReceiptInclusionError):
            open_receipt(wrong.format(), [signer().verifier])


def test_another_salt_is_refused() -> None:
    proof = TlogProof.parse(RECEIPT)
    wrong = replace(proof, extra=bytes(32) + LEAF)
    open_receipt(wrong.format(), [signer().verifier])
    with pytest.raises(ReceiptBindingError):
        verify(wrong.format())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        RECEIPT.replace(b"extra ", b"extra"),
        replace(TlogProof.parse(RECEIPT), extra=None).format(),
        replace(TlogProof.parse(RECEIPT), extra=SALT).format(),
        replace(TlogProof.parse(RECEIPT), extra=SALT + b"\x02" + LEAF[1:]).format(),
        replace(TlogProof.parse(RECEIPT), extra=SALT + LEAF[:60]).format(),
    ],
)
def test_malformed_receipts_are_refused(data: bytes) -> None:
    with pytest.raises(ReceiptFormatError):
        verify(data)


def test_malformed_checkpoint_is_refused() -> None:
    for tail in (b"", b"\n", b"nothing signed\n"):
        wrong = replace(TlogProof.parse(RECEIPT), checkpoint=tail)
        with pytest.raises(ReceiptSignatureError):
            verify(wrong.format())


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(len(RECEIPT) * 8):
        flipped = bytearray(RECEIPT)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ReceiptError):
            verify(bytes(flipped))


def test_every_truncation_is_refused() -> None:
    for end in range(len(RECEIPT)):
        with pytest.raises(ReceiptError):
            verify(RECEIPT[:end])


def test_salt_and_leaf_stay_out_of_printed_forms() -> None:
    receipt = open_receipt(RECEIPT, [signer().verifier])
    assert receipt.salt == SALT
    assert repr(SALT)[2:-1] not in repr(receipt)
    assert repr(SEALED)[2:20] not in repr(receipt)


def test_a_receipt_needs_a_whole_salt() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        format_receipt(0, b"", LEAF, SALT[:31], b"")


def test_a_releasing_receipt_fits_into_trailers() -> None:
    leaf = LEAF[:49] + bytes(2048 - 49)
    big = format_receipt(
        (1 << 40) - 1, bytes(32 * 40), leaf, SALT, TlogProof.parse(RECEIPT).checkpoint
    )
    assert len(big) < 6 * 1024 - 512
