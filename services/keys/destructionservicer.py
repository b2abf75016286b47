"""DestructionService: statements and who signed them, to the list of destructions and back.

Each step is recorded before it takes effect, with the person who took it and the SHA-256 of the
statement; when it cannot be recorded, it does not happen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from sealward.api.keys.v1 import destruction_pb2 as pb
from sealward.api.keys.v1.destruction_pb2_grpc import DestructionServiceServicer
from sealward.kit.chain import call_of, peer_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Code, Reason
from sealward.kit.statement import verify
from services.keys import destruction as steps
from services.keys.destroying import Guard
from services.keys.destruction import OPEN, Destruction, State, person
from services.keys.destructions import Destructions
from services.keys.providers.base import BranchKeys
from services.keys.records import Recorder, about_call
from services.keys.register import Register
from services.keys.revocations import RevocationList

_STATES = {state: pb.DestructionState.Value(f"DESTRUCTION_STATE_{state.name}") for state in State}
_PERSON = re.compile(r"user/[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class DestructionServicer(DestructionServiceServicer):
    """The RPCs. Access by identity is checked before; who signed, here."""

    def __init__(
        self,
        destructions: Destructions,
        branches: BranchKeys,
        guard: Guard,
        register: Register,
        revocations: RevocationList,
        recorder: Recorder,
        wait: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._destructions = destructions
        self._branches = branches
        self._guard = guard
        self._register = register
        self._revocations = revocations
        self._recorder = recorder
        self._wait = wait
        self._clock = clock

    def RequestDestruction(
        self, request: pb.RequestDestructionRequest, context: Any
    ) -> pb.RequestDestructionResponse:
        """Keep a request."""
        signer = self._signer(request.jws, context)
        found = steps.request(request.jws, signer, self._now())
        subject = found.subject
        call_of(context).attributes["target"] = f"{subject.id} {subject.target}"
        # Told at once, not after days: that there is no such key, or that something holds it.
        self._branches.versions(subject.tenant, subject.purpose)
        self._guard.permit(subject, look=True)
        self._destructions.add(found)
        try:
            self._record(context, "keys.destroy-request", found, person(signer))
        except BaseException:
            self._destructions.forget(found)
            raise
        return pb.RequestDestructionResponse(destruction=_told(found))

    def ApproveDestruction(
        self, request: pb.ApproveDestructionRequest, context: Any
    ) -> pb.ApproveDestructionResponse:
        """Approve somebody else's request."""
        found = self._found(request.id, context)
        signer = self._signer(request.jws, context)
        after = steps.approve(found, request.jws, signer, self._now(), self._wait)
        self._guard.permit(found.subject, look=True)
        self._record(context, "keys.destroy-approve", after, person(signer))
        return pb.ApproveDestructionResponse(
            destruction=_told(self._destructions.put(found, after))
        )

    def CancelDestruction(
        self, request: pb.CancelDestructionRequest, context: Any
    ) -> pb.CancelDestructionResponse:
        """Call a destruction off."""
        found = self._found(request.id, context)
        peer = peer_of(context)
        who = person(peer)
        if peer.identity.kind == "service":
            if not _PERSON.fullmatch(request.on_behalf_of):
                raise SealwardError(
                    Reason.FIELD_INVALID, "say on whose behalf", field="on_behalf_of"
                )
            who = request.on_behalf_of
        after = steps.cancel(found, who, self._now())
        self._record(context, "keys.destroy-cancel", after, who)
        return pb.CancelDestructionResponse(destruction=_told(self._destructions.put(found, after)))

    def ListDestructions(
        self, request: pb.ListDestructionsRequest, _context: Any
    ) -> pb.ListDestructionsResponse:
        """List destructions."""
        return pb.ListDestructionsResponse(
            destructions=[
                _told(found)
                for found in self._destructions.all()
                if not request.open or found.state in OPEN
            ],
            wait_seconds=self._wait,
        )

    def _found(self, destruction_id: str, context: Any) -> Destruction:
        found = self._destructions.get(destruction_id)
        call_of(context).attributes["target"] = f"{found.subject.id} {found.subject.target}"
        return found

    def _signer(self, jws: bytes, context: Any) -> Peer:
        """Return who signed: the caller, or a person whose certificate this service issued."""
        statement = verify(jws)
        if len(statement.signers) != 1:
            raise _refused("it has one signature")
        (signer,) = statement.signers
        caller = peer_of(context)
        if caller.identity.kind != "service":
            if signer.spki_sha256 != caller.spki_sha256 or signer.identity != caller.identity:
                raise _refused("it is not signed by the key of the caller's certificate")
            return signer
        row = self._register.find(f"{signer.serial:x}")
        if (
            signer.identity.kind != "user"
            or row is None
            or (row.identity, row.spki) != (signer.identity.uri, signer.spki_sha256)
            or row.not_after <= self._now()
            or self._revocations.holds(signer.serial)
        ):
            raise _refused("its certificate is not of a person, or is good no more")
        return signer

    def _record(self, context: Any, event: str, found: Destruction, who: str) -> None:
        kind, _, name = who.partition("/")
        self._recorder.record(
            event,
            "ok",
            code=Code.OK.name,
            **{
                **about_call(call_of(context)),
                "actor_id": name,
                "actor_kind": kind,
                "target": f"{found.subject.id} {found.subject.target}",
                "change_after": sha256(verify(found.jws).payload).hexdigest(),
            },
        )

    def _now(self) -> int:
        return int(self._clock())


def _told(found: Destruction) -> pb.Destruction:
    subject = found.subject
    return pb.Destruction(
        id=subject.id, tenant=subject.tenant, purpose=subject.purpose, resource=subject.resource,
        reason=subject.reason, state=_STATES[found.state], requested_by=found.requested_by,
        requested_at=found.requested_at, approved_by=found.approved_by,
        approved_at=found.approved_at, due_at=found.due_at, cancelled_by=found.cancelled_by,
        ended_at=found.ended_at, blocked=found.blocked, through=found.through, jws=found.jws,
    )  # fmt: skip


def _refused(why: str) -> SealwardError:
    return SealwardError(
        Reason.FIELD_INVALID, f"the signed statement is refused: {why}", field="jws"
    )
