"""The built-in witness: the keys service, asked over our own mutual TLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from sealward.api.keys.v1 import witness_pb2 as pb
from sealward.api.keys.v1.witness_pb2_grpc import WitnessServiceStub
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.tlog.cosignature import COSIGNATURE_TYPES, CosignatureVerifier
from sealward.tlog.errors import NoteError
from sealward.tlog.note import parse_vkey
from services.audit.cosigning.asking import Answer, WitnessAwayError

NAME = "built-in"

_SECONDS = 5.0


class Channel(Protocol):
    """Where the channel to keys comes from (sealward.kit.channel.Channels)."""

    def get(self) -> grpc.Channel:
        """Return the channel in use."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the built-in witness knows of a log."""

    vkeys: tuple[str, ...]
    checkpoint: bytes
    successor: str


class BuiltinWitness:
    """asking.Witness over the keys service. Thread-safe."""

    name = NAME
    url = ""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._verifiers: tuple[CosignatureVerifier, ...] = ()

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        """Its keys; after `known` was asked once."""
        return self._verifiers

    def known(self) -> dict[str, Known]:
        """Return what it knows, by origin; raise SealwardError or StartupError."""
        try:
            answer = self._stub.GetWitness(
                pb.GetWitnessRequest(), timeout=_SECONDS, wait_for_ready=True
            )
        except (grpc.RpcError, ValueError) as error:
            raise _error(error) from None
        try:
            self._verifiers = tuple(
                parse_vkey(line, COSIGNATURE_TYPES)  # type: ignore[misc]
                for line in answer.vkeys
            )
        except NoteError as error:
            raise StartupError(f"the built-in witness's key cannot be read: {error}") from None
        return {
            log.origin: Known(tuple(log.vkeys), log.checkpoint, log.successor)
            for log in answer.logs
        }

    def add_log(self, vkey: str, proof: bytes) -> None:
        """Let it take on a log or a key (WitnessService.AddLog); raise SealwardError."""
        request = pb.AddLogRequest(vkey=vkey, proof=proof)
        try:
            self._stub.AddLog(request, timeout=_SECONDS, wait_for_ready=True)
        except (grpc.RpcError, ValueError) as error:
            raise _error(error) from None

    def add_checkpoint(self, body: bytes) -> Answer:
        """See asking.Witness."""
        try:
            answer = self._stub.AddCheckpoint(pb.AddCheckpointRequest(body=body), timeout=_SECONDS)
        except (grpc.RpcError, ValueError):
            raise WitnessAwayError from None
        return Answer(answer.status, answer.body)

    def latest(self, origin: str) -> bytes:
        """See asking.Witness."""
        try:
            known = self.known().get(origin)
        except (SealwardError, StartupError):
            raise WitnessAwayError from None
        return known.checkpoint if known else b""

    @property
    def _stub(self) -> WitnessServiceStub:
        return WitnessServiceStub(self._channel.get())


# What the keys service says for good; everything else may pass.
_REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION: Reason.LOG_STATE,
    grpc.StatusCode.INVALID_ARGUMENT: Reason.FIELD_INVALID,
    grpc.StatusCode.PERMISSION_DENIED: Reason.IDENTITY_FORBIDDEN,
    grpc.StatusCode.UNIMPLEMENTED: Reason.NOT_SUPPORTED,
}


def _error(error: Exception) -> SealwardError:
    # ValueError is a channel that was swapped under the call.
    if isinstance(error, grpc.Call):
        reason = _REFUSALS.get(error.code())
        if reason is not None:
            return SealwardError(reason, str(error.details()))
    return SealwardError(
        Reason.KEYS_UNAVAILABLE, "the keys service does not answer", retry_after=1.0
    )
