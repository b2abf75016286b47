"""A failed call as a typed error: status, ErrorInfo and the receipt of the refusal."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sealward.client.errors import (
    CallError,
    DeniedError,
    InvalidRequestError,
    UnavailableError,
)
from sealward.client.verify import Proof, Trailers
from sealward.kit.reasons import Code

DOMAIN = "sealward"
_DETAILS = "grpc-status-details-bin"
_FAMILIES: dict[Code, type[CallError]] = {
    Code.UNAUTHENTICATED: DeniedError,
    Code.PERMISSION_DENIED: DeniedError,
    Code.INVALID_ARGUMENT: InvalidRequestError,
    Code.NOT_FOUND: InvalidRequestError,
    Code.ALREADY_EXISTS: InvalidRequestError,
    Code.FAILED_PRECONDITION: InvalidRequestError,
    Code.OUT_OF_RANGE: InvalidRequestError,
    Code.UNIMPLEMENTED: InvalidRequestError,
    Code.UNAVAILABLE: UnavailableError,
    Code.RESOURCE_EXHAUSTED: UnavailableError,
    Code.DEADLINE_EXCEEDED: UnavailableError,
    Code.ABORTED: UnavailableError,
}


def call_error(
    code: Code,
    message: str,
    metadata: Iterable[tuple[str, str | bytes]] | None,
    trailers: Trailers,
    proof: Proof | None,
) -> CallError:
    """Return the error to raise for a failed call; `proof` is its verified receipt, if any."""
    reason, fields, delay = _details(metadata)
    family = _FAMILIES.get(code, CallError)
    if reason == "MESSAGE_TOO_LARGE":
        family = InvalidRequestError
    return family(
        code,
        message,
        reason=reason,
        field=fields.get("field", ""),
        incident=fields.get("incident", ""),
        event_id=proof.event_id if proof else trailers.event_id,
        log_index=proof.log_index if proof else trailers.log_index,
        receipt=proof.receipt if proof else None,
        outcome=proof.outcome if proof else "",
        origin=proof.origin if proof else "",
        retry_after=delay,
    )


def _details(
    metadata: Iterable[tuple[str, str | bytes]] | None,
) -> tuple[str, dict[str, str], float | None]:
    """Return reason, metadata of ErrorInfo, and the delay of RetryInfo in seconds."""
    reason, fields, delay = "", dict[str, str](), None
    data = dict(metadata or ()).get(_DETAILS)
    if not isinstance(data, bytes):
        return reason, fields, delay
    try:
        for detail in Status.FromString(data).details:
            info, retry = ErrorInfo(), RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason, fields = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                delay = retry.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:
        # The status itself stands; what explains it does not.
        return "", {}, None
    return reason, fields, delay
