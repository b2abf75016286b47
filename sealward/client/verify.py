"""What must hold before an answer is used. Pure: bytes in, a verdict or an error out.

The receipt is verified against the exact bytes that were sent and received. Nothing that the answer
says of itself is believed but the model digest, which the receipt then binds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from sealward.client.checkpoints import Seen
from sealward.client.errors import MissingReceiptError, WrongReceiptError
from sealward.kit.wire import WireError, oip_string_parameter
from sealward.tlog.errors import ReceiptError, ReceiptSignatureError
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import Verifier
from sealward.tlog.receipt import VerifiedReceipt, verify_receipt

EVENT_ID = "sealward-event-id"
LOG_INDEX = "sealward-log-index"
RECEIPT = "sealward-receipt-bin"
MODEL_DIGEST = "sealward_model_digest"
"""Response parameter: lower-case hex SHA-256 of the model file."""

# No log is longer than 2^63.
_INDEX_DIGITS = 20

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Trailers:
    """What Sealward's trailing metadata says. Unverified; empty or None where it is missing."""

    event_id: str = ""
    log_index: int | None = None
    receipt: bytes | None = None

    @classmethod
    def parse(cls, metadata: Metadata | None) -> Trailers:
        """Pick the three keys out of trailing metadata. Raises WrongReceiptError if out of form."""
        found = {
            key: value for key, value in metadata or () if key in {EVENT_ID, LOG_INDEX, RECEIPT}
        }
        receipt = found.get(RECEIPT)
        index = _text(found.get(LOG_INDEX, ""))
        if index and not (index.isascii() and index.isdigit() and len(index) < _INDEX_DIGITS):
            raise WrongReceiptError("the trailing log index is not a number")
        return cls(
            event_id=_text(found.get(EVENT_ID, "")),
            log_index=int(index) if index else None,
            receipt=receipt.encode() if isinstance(receipt, str) else receipt,
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """A verified receipt of one call."""

    receipt: bytes
    event_id: str
    log_index: int
    model_digest: str
    outcome: str
    origin: str
    checkpoint: Seen


class ReceiptVerifier:
    """Verifies receipts against the verifier keys of a profile.

    A log's year ends, and its key may change: a signature that no known key made is looked at once
    more with the keys that `reload` returns. A log whose key is not among them is not believed.
    """

    def __init__(
        self, vkeys: Sequence[Verifier], reload: Callable[[], Sequence[Verifier]] | None = None
    ) -> None:
        self._vkeys = tuple(vkeys)
        self._reload = reload

    def answered(self, request: bytes, response: bytes, trailers: Trailers) -> Proof:
        """Return the proof of an inference that was answered.

        Raises MissingReceiptError or WrongReceiptError.
        """
        digest = model_digest(response)
        return self._verify(request, response, bytes.fromhex(digest), Outcome.OK, trailers, digest)

    def control(self, trailers: Trailers) -> Proof | None:
        """Return the proof that an answered control call was recorded; None without a receipt.

        Its record binds no message bytes: a login carries a password, whose digest must not be
        anywhere. Raises as `answered`.
        """
        if not trailers.receipt:
            return None
        return self._verify(None, None, b"", Outcome.OK, trailers, "")

    def refused(self, request: bytes | None, trailers: Trailers) -> Proof | None:
        """Return the proof that a refusal or failure was recorded; None where it has no receipt.

        `request` is None for a control call. An error without a receipt releases nothing, so it is
        no reason for alarm by itself. Raises as `answered`.
        """
        if not trailers.receipt:
            return None
        return self._verify(request, None, b"", None, trailers, "")

    def _verify(
        self,
        request: bytes | None,
        response: bytes | None,
        digest: bytes,
        outcome: Outcome | None,
        trailers: Trailers,
        digest_text: str,
    ) -> Proof:
        if not trailers.receipt:
            raise MissingReceiptError("the answer carries no receipt")
        if not trailers.event_id or trailers.log_index is None:
            raise MissingReceiptError("the answer does not name its event and log index")
        try:
            event_id = UUID(trailers.event_id).bytes
        except ValueError:
            raise WrongReceiptError("the trailing event id is not a UUID") from None
        receipt = trailers.receipt

        def verify() -> VerifiedReceipt:
            return verify_receipt(
                receipt,
                vkeys=self._vkeys,
                request_digest=_digest(request),
                response_digest=_digest(response),
                model_digest=digest,
                outcome=outcome,
                event_id=event_id,
            )

        try:
            try:
                verified = verify()
            except ReceiptSignatureError:
                if not self._renew():
                    raise
                verified = verify()
        except ReceiptError as error:
            raise WrongReceiptError(str(error)) from error
        if verified.index != trailers.log_index:
            raise WrongReceiptError("the receipt is for another log index than the trailer names")
        return _proof(trailers, verified, digest_text)

    def _renew(self) -> bool:
        """Read the verifier keys again; return whether there is one that was not known."""
        known = {(key.name, key.key_id) for key in self._vkeys}
        found = tuple(self._reload()) if self._reload else ()
        if all((key.name, key.key_id) in known for key in found):
            return False
        self._vkeys = found
        return True


def _proof(trailers: Trailers, verified: VerifiedReceipt, digest: str) -> Proof:
    checkpoint = verified.checkpoint
    return Proof(
        receipt=trailers.receipt or b"",
        event_id=trailers.event_id,
        log_index=verified.index,
        model_digest=digest,
        outcome=verified.outcome.name.lower(),
        origin=checkpoint.origin,
        checkpoint=Seen(checkpoint.size, checkpoint.root, verified.note),
    )


def model_digest(response: bytes) -> str:
    """Return the model digest that an inference response names: 64 lower-case hex digits.

    Reads the bytes alone, so it serves stubs of any origin. Raises WrongReceiptError.
    """
    try:
        digest = oip_string_parameter(response, MODEL_DIGEST)
    except WireError as error:
        raise WrongReceiptError("the answer is not a well-formed message") from error
    if not digest:
        raise MissingReceiptError("the answer does not name the model's digest")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise WrongReceiptError("the answer's model digest is not a SHA-256 in hex")
    return digest


def _digest(message: bytes | None) -> bytes:
    return b"" if message is None else sha256(message).digest()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")
