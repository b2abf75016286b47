"""What the destruction of a key goes through: pure, without clock or disk.

    requested ──approve (another person)──▶ waiting ──due, nothing holds it──▶ executing ──▶ done
        └──────────────cancel──────────────────┴──▶ cancelled

Both people sign one statement, and what is kept has to be what they signed. From `executing` on
there is no way back, and every step of it may be taken again after a crash.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from enum import StrEnum

from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from sealward.kit.statement import join, verify
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import ContextError

SCHEMA = "sealward/destruction/v1"
PURPOSES = frozenset({"session", "user", "model", "job", "audit-segment", "audit-index"})
"""Whose keys are destroyed whole. Without the others the deployment could not go on."""
PATIENT_PURPOSE = "audit-patient"
PATIENT = re.compile(r"patient/[0-9a-f]{32}")
"""A patient's keys, by the event that names the patient."""
LAPSE_SECONDS = 30 * 86400
"""How long a request may wait for its approval."""

_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_REASON = 200


class State(StrEnum):
    """How far a destruction is."""

    REQUESTED = "requested"
    WAITING = "waiting"
    EXECUTING = "executing"
    DONE = "done"
    CANCELLED = "cancelled"


OPEN = frozenset({State.REQUESTED, State.WAITING, State.EXECUTING})
"""States that are not the end."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is destroyed: all keys of a tenant and purpose, or `resource` of them alone."""

    id: str
    tenant: str
    purpose: str
    resource: str
    reason: str

    @property
    def target(self) -> str:
        """Its name in records."""
        return f"{self.tenant}/{self.purpose}" + (f"/{self.resource}" if self.resource else "")


@dataclass(frozen=True, slots=True)
class Destruction:
    """A destruction. Times are seconds since the epoch, 0 = not yet.

    `jws` is the statement with one signature, or two. `through`: the versions up to this one are
    destroyed, and `step` is the last one that was finished of those in `executor.py`. `blocked`:
    why it could not be carried out when it was due, a reason of errors.proto.
    """

    subject: Subject
    state: State
    jws: bytes
    requested_by: str
    requested_at: int
    approved_by: str = ""
    approved_at: int = 0
    due_at: int = 0
    cancelled_by: str = ""
    ended_at: int = 0
    blocked: str = ""
    through: int = 0
    step: str = ""


def person(peer: Peer) -> str:
    """Name who signed: `kind/name`."""
    return f"{peer.identity.kind}/{peer.identity.name}"


def read_subject(payload: bytes) -> Subject:
    """Read what is signed; raise FIELD_INVALID."""
    try:
        value = json.loads(payload)
        subject = Subject(*(value[name] for name in ("id", "tenant", "purpose", "resource",
                                                     "reason")))  # fmt: skip
        if value["schema"] != SCHEMA or len(value) != 6:
            raise ValueError("another form")
        if not all(isinstance(getattr(subject, name), str) for name in Subject.__slots__):
            raise TypeError("no text")
        EncryptionContext(subject.tenant, subject.purpose, "any")
    except (ValueError, KeyError, TypeError, RecursionError, ContextError):
        raise _invalid("it is not a statement about the destruction of a key") from None
    if not _ID.fullmatch(subject.id):
        raise _invalid("id has 32 hex digits")
    reason = subject.reason
    if not 0 < len(reason) <= _LONGEST_REASON or not reason.isprintable():
        raise _invalid(f"reason has 1 to {_LONGEST_REASON} printable characters")
    if subject.purpose == PATIENT_PURPOSE:
        if not PATIENT.fullmatch(subject.resource):
            raise _invalid("resource is patient/<event id>")
    elif subject.resource or subject.purpose not in PURPOSES:
        raise SealwardError(
            Reason.NOT_SUPPORTED,
            f"keys of this purpose are not destroyed; those of {', '.join(sorted(PURPOSES))} are",
            field="purpose",
        )
    return subject


def request(jws: bytes, signer: Peer, now: int) -> Destruction:
    """Return a destruction that somebody asks for, in a statement that they signed."""
    return Destruction(read_subject(verify(jws).payload), State.REQUESTED, jws, person(signer), now)


def approve(found: Destruction, jws: bytes, signer: Peer, now: int, wait: int) -> Destruction:
    """Return it approved by another person; raise POLICY_DENIED, FIELD_INVALID or the state."""
    _in(found, State.REQUESTED)
    if now > found.requested_at + LAPSE_SECONDS:
        raise _state("the request has lapsed: make it again")
    asked = verify(found.jws)
    if verify(jws).payload != asked.payload:
        raise _invalid("the signature is about another statement than the request's")
    (first,) = asked.signers
    if same_person(first, signer):
        raise SealwardError(
            Reason.POLICY_DENIED, "a destruction takes two people: somebody else approves it"
        )
    return replace(
        found, state=State.WAITING, jws=join([found.jws, jws]), approved_by=person(signer),
        approved_at=now, due_at=now + wait,
    )  # fmt: skip


def cancel(found: Destruction, who: str, now: int) -> Destruction:
    """Return it called off; raise DESTRUCTION_STATE."""
    _in(found, State.REQUESTED, State.WAITING)
    return replace(found, state=State.CANCELLED, cancelled_by=who, ended_at=now, blocked="")


def block(found: Destruction, why: str) -> Destruction:
    """Return it with what keeps it from being carried out; empty = nothing."""
    _in(found, State.WAITING, State.EXECUTING)
    return replace(found, blocked=why)


def begin(found: Destruction, through: int, now: int) -> Destruction:
    """Return it being carried out, up to a version; raise DESTRUCTION_STATE before its time."""
    _in(found, State.WAITING)
    if now < found.due_at:
        raise _state("its waiting period is not over")
    return replace(found, state=State.EXECUTING, through=through, blocked="")


def advance(found: Destruction, step: str) -> Destruction:
    """Return it one step further."""
    _in(found, State.EXECUTING)
    return replace(found, step=step, blocked="")


def finish(found: Destruction, now: int) -> Destruction:
    """Return it over."""
    _in(found, State.EXECUTING)
    return replace(found, state=State.DONE, ended_at=now, blocked="")


def same_person(one: Peer, other: Peer) -> bool:
    """Whether two signatures are of one person, or of one key."""
    return one.identity.uri == other.identity.uri or one.spki_sha256 == other.spki_sha256


def check_kept(found: Destruction) -> None:
    """Raise FIELD_INVALID where what was kept is not what its statement and signatures say."""
    statement = verify(found.jws)
    people = [found.requested_by, *([found.approved_by] if found.approved_by else [])]
    approved = found.state in (State.WAITING, State.EXECUTING, State.DONE)
    if (
        read_subject(statement.payload) != found.subject
        or [person(signer) for signer in statement.signers] != people
        or (approved and (len(people) != 2 or same_person(*statement.signers)))
    ):
        raise _invalid("it is not what its two people signed")


def _in(found: Destruction, *states: State) -> None:
    if found.state not in states:
        raise _state(f"it is {found.state}")


def _state(why: str) -> SealwardError:
    return SealwardError(Reason.DESTRUCTION_STATE, why, field="id")


def _invalid(why: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, f"the statement is refused: {why}", field="jws")
