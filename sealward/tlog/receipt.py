"""Receipts: the proof that leaves with an answer.

A receipt is a tlog-proof whose `extra` data is salt[32] || leaf. It shows that this very call, by
its request bytes, its response bytes, the model and the outcome, is an entry of the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import (
    CheckpointError,
    LeafError,
    NoteError,
    ProofError,
    ProofFormatError,
    ReceiptBindingError,
    ReceiptEventError,
    ReceiptFormatError,
    ReceiptInclusionError,
    ReceiptSignatureError,
    SignatureError,
)
from sealward.tlog.leaf import SALT_SIZE, Leaf, Outcome, binding, parse_leaf
from sealward.tlog.merkle import leaf_hash, verify_inclusion
from sealward.tlog.note import Verifier
from sealward.tlog.proof import TlogProof, format_proof


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt that holds: this leaf is at `index` in the tree of the signed `checkpoint`.

    `note` is the signed checkpoint as it came, to be kept beside the others of this log. The salt
    is the caller's alone, so that it stays out of every printed form.
    """

    checkpoint: Checkpoint
    note: bytes
    index: int
    leaf: Leaf = field(repr=False)
    salt: bytes = field(repr=False)

    @property
    def event_id(self) -> bytes:
        """The event's id, 16 bytes."""
        return self.leaf.event_id


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt that holds for one call: what it shows."""

    checkpoint: Checkpoint
    note: bytes
    index: int
    event_id: bytes
    outcome: Outcome


def format_receipt(
    index: int, path: bytes | Sequence[bytes], leaf: bytes, salt: bytes, checkpoint: bytes
) -> bytes:
    """Return the bytes of a receipt.

    `path` is the inclusion path, joined or as single hashes; `leaf` the entry as it is hashed;
    `checkpoint` the signed note. Raises ValueError if the salt is not 32 bytes long.
    """
    if len(salt) != SALT_SIZE:
        raise ValueError("the salt of a receipt is 32 bytes long")
    return format_proof(index, path, checkpoint, salt + leaf)


def open_receipt(data: bytes, vkeys: Sequence[Verifier], origin: str | None = None) -> Receipt:
    """Check a receipt as far as the log goes: signature, inclusion, layout of the leaf.

    What call it is about is for `verify_receipt`. Raises ReceiptFormatError, ReceiptSignatureError
    or ReceiptInclusionError.
    """
    try:
        proof = TlogProof.parse(data)
    except ProofFormatError as error:
        raise ReceiptFormatError("receipt is not a tlog-proof") from error
    if proof.extra is None or len(proof.extra) <= SALT_SIZE:
        raise ReceiptFormatError("receipt carries no leaf")
    salt, entry = proof.extra[:SALT_SIZE], proof.extra[SALT_SIZE:]
    try:
        leaf = parse_leaf(entry)
    except LeafError as error:
        raise ReceiptFormatError("receipt carries a malformed leaf") from error
    try:
        checkpoint = open_checkpoint(proof.checkpoint, vkeys, origin)
    except SignatureError as error:
        raise ReceiptSignatureError("checkpoint in the receipt is not signed by the log") from error
    except (NoteError, CheckpointError) as error:
        raise ReceiptSignatureError("checkpoint in the receipt is not one of the log") from error
    try:
        verify_inclusion(
            leaf_hash(entry), proof.index, checkpoint.size, proof.path, checkpoint.root
        )
    except ProofError as error:
        raise ReceiptInclusionError("receipt does not show that its leaf is in the log") from error
    return Receipt(checkpoint, proof.checkpoint, proof.index, leaf, salt)


def verify_receipt(
    data: bytes,
    *,
    vkeys: Sequence[Verifier],
    request_digest: bytes,
    response_digest: bytes,
    model_digest: bytes,
    outcome: Outcome | None,
    event_id: bytes | None = None,
    origin: str | None = None,
) -> VerifiedReceipt:
    """Check that a receipt is about one call and that the call is in the log.

    The digests are the SHA-256 of the request and response messages and of the model file, empty
    where there is none. An `outcome` of None accepts a denied and a failed call alike, for callers
    that see an error and not which of the two it is; it never accepts `Outcome.OK`. `event_id` (16
    bytes) and `origin` are compared where given. Raises a subclass of ReceiptError that names the
    first thing that does not hold, in this order: format, signature, inclusion, event, binding.
    """
    receipt = open_receipt(data, vkeys, origin)
    if event_id is not None and not compare_digest(event_id, receipt.event_id):
        raise ReceiptEventError("receipt is about another event")
    candidates = (Outcome.DENIED, Outcome.FAILED) if outcome is None else (outcome,)
    for candidate in candidates:
        expected = binding(receipt.salt, request_digest, response_digest, model_digest, candidate)
        if compare_digest(expected, receipt.leaf.binding):
            return VerifiedReceipt(
                receipt.checkpoint, receipt.note, receipt.index, receipt.event_id, candidate
            )
    raise ReceiptBindingError("receipt is about another request, response, model or outcome")
