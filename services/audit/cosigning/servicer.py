"""CosigningService: how the logs stand with their witnesses. Proto and back."""

from __future__ import annotations

import grpc

from sealward.api.audit.v1 import cosigning_pb2 as pb
from sealward.api.audit.v1.cosigning_pb2_grpc import CosigningServiceServicer
from sealward.tlog.policy import PolicyWitness, printable
from services.audit.cosigning.keeper import Cosigning
from services.audit.cosigning.rounds import WitnessRecord
from services.audit.cosigning.watched import WatchedLog


class CosigningServicer(CosigningServiceServicer):
    """See the proto."""

    def __init__(self, cosigning: Cosigning) -> None:
        self._cosigning = cosigning

    def GetCosigning(
        self,
        request: pb.GetCosigningRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> pb.GetCosigningResponse:
        """Return how things stand."""
        cosigning = self._cosigning
        policy = cosigning.witnesses.policy
        rows = {w.identity: w for w in policy.witnesses}
        return pb.GetCosigningResponse(
            logs=[_log(log) for log in cosigning.rounds.logs()],
            witnesses=[_witness(record, rows) for record in cosigning.rounds.records],
            policy=cosigning.policy_text(),
        )


def _log(log: WatchedLog) -> pb.CosignedLog:
    newest = log.newest
    return pb.CosignedLog(
        origin=log.origin,
        size=log.published()[0],
        cosigned_size=newest.size,
        checkpoint=newest.note,
        cosigned_unix=newest.time,
        waiting_seconds=log.waiting,
    )


def _witness(
    record: WitnessRecord, rows: dict[tuple[str, bytes], PolicyWitness]
) -> pb.WitnessState:
    witness = record.witness
    mentioned = [rows[key] for v in witness.verifiers if (key := (v.name, v.key_id)) in rows]
    return pb.WitnessState(
        name=printable(mentioned[0].name) if mentioned else witness.name,
        url=witness.url,
        vkey=(mentioned[0].verifier if mentioned else witness.verifiers[0]).vkey,
        counts=bool(mentioned),
        state=record.state,
        cosigned_unix=record.cosigned,
        failures=record.failures,
    )
