"""How an error leaves the process: a status, google.rpc.ErrorInfo, and nothing else.

The only place that ends a call. `context.set_code` with a return is never used: a client does not
retry such an answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NoReturn

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Reason

DOMAIN = "sealward"
DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def details(error: SealwardError, incident: str = "") -> bytes:
    """Serialise google.rpc.Status with ErrorInfo, and RetryInfo and BadRequest where they fit."""
    info = ErrorInfo(reason=error.reason.name, domain=DOMAIN)
    if error.field:
        info.metadata["field"] = error.field
    if incident:
        info.metadata["incident"] = incident
    status = Status(code=int(error.code), message=error.message)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after * 1000))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    if error.field:
        status.details.add().Pack(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field=error.field, description=error.message)
                ]
            )
        )
    serialised: bytes = status.SerializeToString()
    return serialised


def as_sealward_error(
    error: BaseException, log: structlog.typing.FilteringBoundLogger, method: str
) -> tuple[SealwardError, str]:
    """Return the error to answer with and its incident id; log what is not a SealwardError.

    The text of an unknown exception is neither logged nor sent: it may quote a request.
    """
    if isinstance(error, SealwardError):
        return error, ""
    incident = secrets.token_hex(8)
    log.error(
        "internal",
        incident=incident,
        method=method,
        error_type=type(error).__name__,
        where=where(error),
    )
    return SealwardError(Reason.INTERNAL, f"internal error, incident {incident}"), incident


def reason_of(error: grpc.Call) -> Reason | None:
    """Return the reason that another of our services gave for the error of a call."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            info = ErrorInfo()
            try:
                status = Status.FromString(value)
                if any(detail.Unpack(info) for detail in status.details):
                    return Reason.__members__.get(info.reason)
            except DecodeError:
                return None
    return None


def abort(
    context: grpc.ServicerContext,
    error: SealwardError,
    trailers: Sequence[tuple[str, str | bytes]] = (),
    incident: str = "",
) -> NoReturn:
    """End a call with an error and its trailers."""
    context.set_trailing_metadata((*trailers, (DETAILS_KEY, details(error, incident))))
    context.abort(_CODES[int(error.code)], error.message)
    raise AssertionError  # pragma: no cover - abort always raises
