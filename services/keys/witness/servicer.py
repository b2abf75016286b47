"""WitnessService: proto to the witness and back. Who may call is the chassis's business."""

from __future__ import annotations

from typing import Any

from sealward.api.keys.v1 import witness_pb2 as pb
from sealward.api.keys.v1.witness_pb2_grpc import WitnessServiceServicer
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.keys.witness.folder import WatchedLog
from services.keys.witness.witness import Witness


class WitnessServicer(WitnessServiceServicer):
    """The RPCs."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def AddCheckpoint(
        self, request: pb.AddCheckpointRequest, _context: Any
    ) -> pb.AddCheckpointResponse:
        """Cosign a checkpoint, or say why not."""
        answer = self._witness.add_checkpoint(request.body)
        return pb.AddCheckpointResponse(
            status=answer.status, body=answer.body, content_type=answer.content_type
        )

    def AddLog(self, request: pb.AddLogRequest, context: Any) -> pb.AddLogResponse:
        """Take on a log or a key."""
        # The name in front of the key; what is refused may be anything, and is kept short.
        call_of(context).attributes["target"] = request.vkey.split("+", 1)[0][:200]
        return pb.AddLogResponse(added=self._witness.add_log(request.vkey, request.proof))

    def GetWitness(self, request: pb.GetWitnessRequest, _context: Any) -> pb.GetWitnessResponse:
        """Return keys and logs."""
        return pb.GetWitnessResponse(
            vkeys=self._witness.verifiers,
            logs=[_log(log) for log in self._witness.logs() if request.origin in {"", log.origin}],
        )

    def ForgetLog(self, request: pb.ForgetLogRequest, context: Any) -> pb.ForgetLogResponse:
        """Forget a log."""
        if request.confirm != request.origin:
            raise SealwardError(
                Reason.FIELD_INVALID, "confirm repeats the name of the log", field="confirm"
            )
        call_of(context).attributes["target"] = request.origin[:200]
        self._witness.forget(request.origin)
        return pb.ForgetLogResponse()


def _log(log: WatchedLog) -> pb.WitnessedLog:
    return pb.WitnessedLog(
        origin=log.origin,
        vkeys=log.vkeys,
        checkpoint=log.checkpoint,
        successor=log.successor,
        conflict=log.conflict,
    )
