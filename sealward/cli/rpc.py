"""A failed call, as a command's error: its status decides the exit code, its reason the advice."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from sealward.cli.errors import CliError, Exit

_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

ADVICE: Mapping[str, str] = {
    "SESSION_MISSING": "log in: sealward login --user NAME",
    "SESSION_INVALID": "log in again: sealward login --user NAME, sealward client token PROGRAM",
    "SESSION_EXPIRED": "log in again: sealward login --user NAME, sealward client token PROGRAM",
    "SESSION_CERTIFICATE_MISMATCH": "use the token with the certificate that logged in",
    "PASSWORD_CHANGE_REQUIRED": "add --new-password-file FILE",
    "SECOND_FACTOR_REQUIRED": "add --code CODE",
    "STEP_UP_REQUIRED": "sealward factor step-up --user NAME --code CODE; without a factor yet:"
    " sealward factor begin --user NAME",
    "POLICY_CHANGED": "see sealward policy show, then propose it again",
    "PURPOSE_REQUIRED": "name the purpose of use: --purpose TREAT",
    "PURPOSE_UNKNOWN": "use an HL7 v3 PurposeOfUse code such as TREAT",
    "MODEL_UNKNOWN": "list the models: sealward model list",
    "AUDIT_UNAVAILABLE": "see sealward status; nothing was released",
    "KEYS_UNAVAILABLE": "see sealward status",
    "CERTIFICATE_REVOKED": "sealward certs rotate --user NAME, once it is known why",
    "REVOCATIONS_UNKNOWN": "is the keys service running? see sealward status",
    "JOIN_TOKEN_UNKNOWN": "make a new one: sealward certs join-token",
    "JOIN_TOKEN_USED": "make a new one: sealward certs join-token",
    "JOIN_TOKEN_EXPIRED": "make a new one: sealward certs join-token",
    "JOIN_TOKEN_MISMATCH": "make a new one: sealward certs join-token",
    "KEY_REVOKED": "sealward certs rotate --user NAME makes a new key",
    "INFERENCE_UNAVAILABLE": "see sealward status",
    "SESSION_STORE_UNAVAILABLE": "see sealward status",
    "ASSERTION_INVALID": "compare key id, audience and clock: sealward client show NAME",
    "ASSERTION_REPLAYED": "make a new assertion, with a jti of its own",
    "SCOPE_REFUSED": "see sealward client show NAME",
    "PROVIDER_UNAVAILABLE": "a password works: sealward login --user NAME",
    "PROVIDER_REFUSED": "begin again: sealward login --oidc --user NAME",
    "CHALLENGE_UNKNOWN": "begin again",
    "FACTOR_SUSPENDED": "log in with a recovery code, then sealward factor remove-key",
    "PERSON_UNKNOWN": "sealward identity link NAME --subject SUB, by a security-admin",
    "ROLE_MISSING": "the operator's file of roles names none of this person's groups",
    "LOG_STATE": "see sealward audit logs list; freeze, archive and purge follow each other",
    "LOG_RETAINED": "see sealward audit logs list and sealward audit hold list",
    "LOG_PURGED": "its proofs still verify: sealward audit verify",
    "RATE_LIMITED": "wait, then try again",
    "LOGIN_LOCKED": "wait, or have it unlocked: sealward user unlock",
    "OVERLOADED": "wait, then try again",
    "INTERNAL": "look for the incident in the service's log under logs/",
}


def error_info(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Return the reason and metadata of google.rpc.ErrorInfo; empty when there is none of ours."""
    from google.rpc.error_details_pb2 import ErrorInfo
    from google.rpc.status_pb2 import Status

    raw = trailers(error).get("grpc-status-details-bin", b"")
    status = Status()
    try:
        status.ParseFromString(raw if isinstance(raw, bytes) else b"")
    except ValueError:
        return "", {}
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == "sealward":
            return str(info.reason), dict(info.metadata)
    return "", {}


def trailers(call: Any) -> dict[str, str | bytes]:
    """Return the trailing metadata of a call or of its error."""
    return dict(call.trailing_metadata() or ())


def cli_error(error: grpc.RpcError, what: str) -> CliError:
    """Turn the error of a call into what the command prints. `what` names the attempt."""
    call: Any = error
    code: grpc.StatusCode = call.code()
    reason, metadata = error_info(error)
    metadata_of_call = trailers(call)
    receipt = metadata_of_call.get("sealward-receipt-bin")
    # A message that is too large stays so.
    busy = code in _UNAVAILABLE and reason != "MESSAGE_TOO_LARGE"
    # The text of a status without a reason of ours is the transport's own: it names addresses.
    message = str(call.details()) if reason else f"{what}: the service does not answer"
    if not reason and code not in _UNAVAILABLE:
        message = f"{what}: {call.details()}"
    index = metadata_of_call.get("sealward-log-index")
    return CliError(
        message,
        advice=ADVICE.get(reason, "" if reason else "see sealward status"),
        code=Exit.UNAVAILABLE if busy else Exit.FAILED,
        status=code.name,
        reason=reason,
        field=metadata.get("field"),
        incident=metadata.get("incident"),
        event_id=metadata_of_call.get("sealward-event-id"),
        log_index=int(index) if isinstance(index, str) and index.isdigit() else None,
        receipt=base64.b64encode(receipt).decode() if isinstance(receipt, bytes) else None,
    )


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn a failed call inside the block into a CliError."""
    try:
        yield
    except grpc.RpcError as error:
        raise cli_error(error, what) from None
