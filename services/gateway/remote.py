"""Unary calls to the other services, with errors that a caller may see."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.status import DETAILS_KEY

_LONGEST_SECONDS = 10.0
# Reasons of the other service that are about what our caller sent; the rest is between services.
_PASSED_ON = frozenset(
    {
        Reason.FIELD_INVALID,
        Reason.NOT_FOUND,
        Reason.CERTIFICATE_REQUEST_INVALID,
        Reason.KEY_REVOKED,
        Reason.OVERLOADED,
        Reason.NOT_COSIGNED,
        Reason.DESTRUCTION_HELD,
        Reason.DESTRUCTION_STATE,
        Reason.ALREADY_EXISTS,
        Reason.NOT_SUPPORTED,
        # Of two people who have to sign one has signed twice.
        Reason.POLICY_DENIED,
    }
)

_Response = TypeVar("_Response", bound=Message)


def ask(
    method: Callable[..., _Response], request: Message, *, deadline: float, unavailable: Reason
) -> _Response:
    """Make a call; raise SealwardError, with `unavailable` when there is no usable answer.

    `deadline` is the caller's, on the monotonic clock.
    """
    timeout = min(_LONGEST_SECONDS, max(0.0, deadline - time.monotonic()))
    try:
        return method(request, timeout=timeout)
    except (grpc.RpcError, ValueError) as error:
        # ValueError: the channel was exchanged under the call.
        raise _as_error(error, unavailable) from None


def _as_error(error: Exception, unavailable: Reason) -> SealwardError:
    outcome = cast("object", error)
    if isinstance(outcome, grpc.Call):
        for key, value in outcome.trailing_metadata() or ():
            if key == DETAILS_KEY and isinstance(value, bytes):
                found = _from_details(value)
                if found is not None:
                    return found
    return SealwardError(unavailable, "a service behind the gateway does not answer", retry_after=1)


def _from_details(value: bytes) -> SealwardError | None:
    info = ErrorInfo()
    try:
        status = Status.FromString(value)
        if not any(detail.Unpack(info) for detail in status.details):
            return None
    except DecodeError:
        return None
    reason = Reason.__members__.get(info.reason)
    if reason is None or reason not in _PASSED_ON:
        return None
    return SealwardError(
        reason,
        status.message,
        field=info.metadata.get("field", ""),
        retry_after=1 if reason is Reason.NOT_COSIGNED else None,
    )
