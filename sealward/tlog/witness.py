"""The messages of the witness protocol, and how a witness decides (c2sp.org/tlog-witness).

Pure: who uses it brings the transport, keeps what was cosigned last, and does so atomically: what
`judge` accepts is to be kept durably before the cosignatures leave, and nothing may be judged for
the same log in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import (
    CheckpointError,
    NoteError,
    ProofError,
    SignatureError,
    WitnessFormatError,
)
from sealward.tlog.merkle import EMPTY_ROOT, HASH_SIZE, verify_consistency
from sealward.tlog.note import Signature, Verifier, open_note, parse_note, parse_signatures
from sealward.tlog.text import decode_base64, decode_decimal, encode_base64

MAX_REQUEST_SIZE = 256 << 10
"""Bytes; a longer request is refused unread. Sixteen post-quantum signatures take 80 KiB."""

MAX_PROOF = 63
"""Lines of a consistency proof."""

SIZE_TYPE = "text/x.tlog.size"
"""Content-Type of the answer 409."""


class Status(IntEnum):
    """HTTP statuses with which a witness answers."""

    OK = 200
    BAD_REQUEST = 400
    FORBIDDEN = 403
    NOT_FOUND = 404
    CONFLICT = 409
    UNPROCESSABLE = 422


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request: the size cosigned last, the proof from there, the signed checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def format(self) -> bytes:
        """Return the body of the request."""
        lines = [f"old {self.old}", *map(encode_base64, self.proof), "", ""]
        return "\n".join(lines).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> "AddCheckpoint":
        """Read a body; raises WitnessFormatError. The checkpoint is not looked at."""
        if len(data) > MAX_REQUEST_SIZE:
            raise WitnessFormatError("request is too large")
        head, blank, checkpoint = data.partition(b"\n\n")
        if not blank:
            raise WitnessFormatError("request has no checkpoint")
        try:
            first, *lines = head.decode("ascii").split("\n")
            keyword, _, number = first.partition(" ")
            if keyword != "old":
                raise WitnessFormatError("request does not begin with the old size")
            old = decode_decimal(number)
            proof = tuple(decode_base64(line) for line in lines)
        except ValueError:
            raise WitnessFormatError("request has a malformed line") from None
        if len(proof) > MAX_PROOF or any(len(h) != HASH_SIZE for h in proof):
            raise WitnessFormatError("request has a proof that cannot be")
        return cls(old, proof, checkpoint)


@dataclass(frozen=True, slots=True)
class KnownLog:
    """What a witness knows of a log: the keys that it trusts, size and root cosigned last."""

    verifiers: Sequence[Verifier]
    size: int = 0
    root: bytes = EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a witness does with a request.

    `status` is the answer. With OK, `checkpoint` is to be kept and cosigned; with UNPROCESSABLE it
    is one that the log signed and that does not continue what it signed before: proof of what it
    did, None where it is malformed. `text` and `signatures` are the note's: of the lines only those
    that hold. `known` is the size cosigned last, the body of CONFLICT.
    """

    status: Status
    checkpoint: Checkpoint | None = None
    text: bytes = b""
    signatures: tuple[Signature, ...] = ()
    known: int = 0


def judge(  # noqa: PLR0911 - one answer after the other, in the order of the specification
    request: AddCheckpoint, find: Callable[[str], KnownLog | None]
) -> Judgement:
    """Decide what is asked. `find` knows a log by its origin."""
    try:
        text = parse_note(request.checkpoint).text
        origin = text.partition(b"\n")[0].decode()
    except NoteError:
        return Judgement(Status.BAD_REQUEST)
    log = find(origin)
    if log is None:
        return Judgement(Status.NOT_FOUND)
    try:
        signatures = open_note(request.checkpoint, log.verifiers).verified
    except SignatureError:
        return Judgement(Status.FORBIDDEN)
    except NoteError:
        return Judgement(Status.BAD_REQUEST)
    if _is_wrongly_empty(text):
        return Judgement(Status.UNPROCESSABLE, None, text, signatures)
    try:
        checkpoint = Checkpoint.parse(text)
    except CheckpointError:
        return Judgement(Status.BAD_REQUEST)
    if request.old > checkpoint.size:
        return Judgement(Status.BAD_REQUEST)
    if request.old != log.size:
        return Judgement(Status.CONFLICT, None, text, signatures, log.size)
    try:
        verify_consistency(log.size, checkpoint.size, request.proof, log.root, checkpoint.root)
    except ProofError:
        return Judgement(Status.UNPROCESSABLE, checkpoint, text, signatures)
    return Judgement(Status.OK, checkpoint, text, signatures)


def format_size(size: int) -> bytes:
    """Return the body of the answer 409."""
    return b"%d\n" % size


def parse_size(body: bytes) -> int:
    """Read the body of the answer 409; raises WitnessFormatError."""
    try:
        number = body.decode("ascii")
        if not number.endswith("\n"):
            raise WitnessFormatError("size does not end in a newline")
        return decode_decimal(number[:-1])
    except ValueError:
        raise WitnessFormatError("size is not a plain decimal number") from None


def parse_cosignatures(body: bytes) -> tuple[Signature, ...]:
    """Read the body of the answer 200: signature lines, unverified; raises WitnessFormatError."""
    if len(body) > MAX_REQUEST_SIZE:
        raise WitnessFormatError("answer is too large")
    try:
        return parse_signatures(body)
    except NoteError as error:
        raise WitnessFormatError(f"answer has no signature lines: {error}") from None


def _is_wrongly_empty(text: bytes) -> bool:
    """Whether a text is a checkpoint of size 0 but for its root, which no empty tree has."""
    lines = text.split(b"\n")
    if len(lines) < 4 or lines[1] != b"0":
        return False
    try:
        root = decode_base64(lines[2].decode("ascii"))
    except ValueError:
        return False
    return len(root) == HASH_SIZE and root != EMPTY_ROOT
