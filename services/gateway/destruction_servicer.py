"""DestructionService: lets people ask for and approve the destruction of keys.

Session and policy are checked here; what they sign goes on to the keys service as it is, which
verifies the signature by the certificates that it issued.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from sealward.api.gateway.v1 import destruction_pb2 as pb
from sealward.api.gateway.v1 import destruction_pb2_grpc as pb_grpc
from sealward.api.keys.v1 import destruction_pb2 as keys_pb
from sealward.api.keys.v1.destruction_pb2_grpc import DestructionServiceStub
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.statement import verify
from services.gateway.authority import Authority, deadline_of
from services.gateway.remote import ask

_ID = re.compile(r"[0-9a-f]{32}")
_Response = TypeVar("_Response", bound=Message)


class DestructionServicer(pb_grpc.DestructionServiceServicer):
    """See the proto. `keys` gives the channel to the keys service."""

    def __init__(self, authority: Authority, keys: Callable[[], grpc.Channel]) -> None:
        self._authority = authority
        self._keys = keys

    def RequestDestruction(
        self, request: pb.RequestDestructionRequest, context: Any
    ) -> pb.RequestDestructionResponse:
        """Pass a request on."""
        self._authority.admit(context)
        _check_signer(request.jws, context)
        answer = self._ask(
            context,
            DestructionServiceStub(self._keys()).RequestDestruction,
            keys_pb.RequestDestructionRequest(jws=request.jws),
        )
        call_of(context).attributes[names.TARGET] = answer.destruction.id
        return pb.RequestDestructionResponse(destruction=answer.destruction)

    def ApproveDestruction(
        self, request: pb.ApproveDestructionRequest, context: Any
    ) -> pb.ApproveDestructionResponse:
        """Pass an approval on."""
        self._authority.admit(context)
        _note(context, request.id)
        _check_signer(request.jws, context)
        answer = self._ask(
            context,
            DestructionServiceStub(self._keys()).ApproveDestruction,
            keys_pb.ApproveDestructionRequest(id=request.id, jws=request.jws),
        )
        return pb.ApproveDestructionResponse(destruction=answer.destruction)

    def CancelDestruction(
        self, request: pb.CancelDestructionRequest, context: Any
    ) -> pb.CancelDestructionResponse:
        """Call one off, in the name of the caller."""
        caller = self._authority.admit(context)
        _note(context, request.id)
        answer = self._ask(
            context,
            DestructionServiceStub(self._keys()).CancelDestruction,
            keys_pb.CancelDestructionRequest(
                id=request.id, on_behalf_of=f"{caller.identity.kind}/{caller.identity.name}"
            ),
        )
        return pb.CancelDestructionResponse(destruction=answer.destruction)

    def ListDestructions(
        self, request: pb.ListDestructionsRequest, context: Any
    ) -> pb.ListDestructionsResponse:
        """List them."""
        self._authority.admit(context)
        answer = self._ask(
            context,
            DestructionServiceStub(self._keys()).ListDestructions,
            keys_pb.ListDestructionsRequest(open=request.open),
        )
        return pb.ListDestructionsResponse(
            destructions=answer.destructions, wait_seconds=answer.wait_seconds
        )

    @staticmethod
    def _ask(context: Any, method: Callable[..., _Response], request: Message) -> _Response:
        return ask(
            method,
            request,
            deadline=deadline_of(context),
            unavailable=Reason.KEYS_UNAVAILABLE,
        )


def _check_signer(jws: bytes, context: Any) -> None:
    """Raise FIELD_INVALID unless the caller signed, with the key of the connection."""
    peer = call_of(context).peer
    signers = verify(jws).signers
    if [(s.spki_sha256, s.identity) for s in signers] != [(peer.spki_sha256, peer.identity)]:
        raise SealwardError(
            Reason.FIELD_INVALID,
            "the signed statement is refused: it is not signed by the key of the caller's"
            " certificate",
            field="jws",
        )


def _note(context: Any, destruction_id: str) -> None:
    """Leave the id for the record, when it is one: any other text is the caller's own."""
    if _ID.fullmatch(destruction_id):
        call_of(context).attributes[names.TARGET] = destruction_id
