"""One question to one witness: cosign this checkpoint. Pure but for the witness's transport.

A witness that knows another size says so (409) and is asked again from there. One that knows more
than the log has, or that finds the log not to continue what it has cosigned, is a conflict: the log
was rolled back or forked, or the witness is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sealward.tlog.cosignature import CosignatureVerifier, timestamp_of
from sealward.tlog.errors import TlogError, WitnessFormatError
from sealward.tlog.merkle import split_hashes
from sealward.tlog.note import Signature, parse_note
from sealward.tlog.witness import AddCheckpoint, Status, parse_cosignatures, parse_size

# The first request may be from a size that the witness does not have.
_ATTEMPTS = 2


class WitnessAwayError(Exception):
    """The witness did not answer in time, or not at all. Carries no data."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the protocol: HTTP status and body."""

    status: int
    body: bytes = b""


class Witness(Protocol):
    """A witness that can be asked. Methods raise WitnessAwayError and take a bounded time."""

    @property
    def name(self) -> str:
        """What it is called in metrics and in messages."""

    @property
    def url(self) -> str:
        """Where it is asked; empty for the built-in one."""

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        """Its keys."""

    def add_checkpoint(self, body: bytes) -> Answer:
        """Ask `add-checkpoint`."""

    def latest(self, origin: str) -> bytes:
        """Return the newest checkpoint that it has cosigned; empty where it does not tell."""


class Grown(Protocol):
    """What is needed of a log (log.LogView)."""

    @property
    def head(self) -> tuple[int, bytes]:
        """The newest size and its signed checkpoint."""

    def consistency(self, old: int, new: int) -> bytes:
        """Return the consistency proof between two sizes, joined."""


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The lines by the witness's own keys, which hold."""

    lines: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """No cosignature, and no sign of a conflict."""

    state: Literal["away", "refused", "unknown-log"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """The witness says that it has cosigned a tree of this size that the log does not continue."""

    size: int


Result = Cosigned | Refused | Conflict


def ask(
    witness: Witness, log: Grown, size: int, checkpoint: bytes, known: int
) -> tuple[Result, int]:
    """Ask for a cosignature of the log's signed checkpoint of this size.

    `known` is what the witness is thought to have cosigned. Returns the result and what it has
    cosigned as far as it is known now. What `consistency` raises passes.
    """
    old = min(known, size)
    for _ in range(_ATTEMPTS):
        proof = tuple(split_hashes(log.consistency(old, size)))
        try:
            answer = witness.add_checkpoint(AddCheckpoint(old, proof, checkpoint).format())
        except WitnessAwayError:
            return Refused("away"), known
        if answer.status != Status.CONFLICT:
            result = _result(answer, checkpoint, witness.verifiers, old)
            return result, size if isinstance(result, Cosigned) else known
        try:
            known = parse_size(answer.body)
        except WitnessFormatError:
            break
        if known > size:
            # A later checkpoint of ours may be what it has; then the next one is asked for.
            behind = known > log.head[0]
            return (Conflict(known) if behind else Refused("away")), known
        if known == old:
            break
        old = known
    return Refused("refused"), known


def _result(
    answer: Answer, checkpoint: bytes, verifiers: Sequence[CosignatureVerifier], old: int
) -> Result:
    if answer.status == Status.OK:
        lines = _lines(answer.body, checkpoint, verifiers)
        return Cosigned(lines) if lines else Refused("refused")
    # Of an empty proof from the beginning nothing can be wrong.
    if answer.status == Status.UNPROCESSABLE and old:
        return Conflict(old)
    return Refused("unknown-log" if answer.status == Status.NOT_FOUND else "refused")


def _lines(
    body: bytes, checkpoint: bytes, verifiers: Sequence[CosignatureVerifier]
) -> tuple[Signature, ...]:
    """Return those lines that are by the witness's keys and hold; none if one of them does not.

    Lines of other keys are ignored, as the specification says; so is one without a time.
    """
    text = parse_note(checkpoint).text
    known = {(v.name, v.key_id): v for v in verifiers}
    found: dict[tuple[str, bytes], Signature] = {}
    try:
        for line in parse_cosignatures(body):
            verifier = known.get((line.name, line.key_id))
            if verifier is None:
                continue
            if not verifier.verify(text, line.signature) or not timestamp_of(line.signature):
                return ()
            found.setdefault((line.name, line.key_id), line)
    except TlogError:
        return ()
    return tuple(found.values())
