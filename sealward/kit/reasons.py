"""Reasons and status codes, without gRPC.

`Reason` mirrors sealward.api.common.v1.Reason (a test compares the two), `Code` the status codes of
https://grpc.io/docs/guides/status-codes/. Domain code raises reasons; only the chassis turns them
into gRPC statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(IntEnum):
    """Why a call was not answered; the protos say what each one means."""

    # Who asks
    IDENTITY_INVALID = 1
    IDENTITY_FORBIDDEN = 2
    SESSION_MISSING = 3
    SESSION_INVALID = 4
    SESSION_EXPIRED = 5
    SESSION_CERTIFICATE_MISMATCH = 6
    LOGIN_FAILED = 7
    PASSWORD_CHANGE_REQUIRED = 8
    RATE_LIMITED = 9
    PASSWORD_UNACCEPTABLE = 10
    SECOND_FACTOR_REQUIRED = 12
    SECOND_FACTOR_WRONG = 13
    STEP_UP_REQUIRED = 14
    CERTIFICATE_REVOKED = 11
    JOIN_TOKEN_UNKNOWN = 16
    JOIN_TOKEN_USED = 17
    JOIN_TOKEN_EXPIRED = 18
    JOIN_TOKEN_MISMATCH = 19

    # What they may do
    POLICY_DENIED = 20
    PURPOSE_REQUIRED = 21
    PURPOSE_UNKNOWN = 22
    METADATA_UNKNOWN = 23
    METADATA_INVALID = 24
    POLICY_CHANGED = 25

    # What they sent
    REQUEST_MALFORMED = 40
    FIELD_INVALID = 41
    MESSAGE_TOO_LARGE = 42
    MODEL_UNKNOWN = 43
    MODEL_NOT_READY = 44
    INPUT_NAME = 45
    INPUT_DATATYPE = 46
    INPUT_SHAPE = 47
    INPUT_NOT_FINITE = 48
    INPUT_RANGE = 49
    OUTPUT_NAME = 50
    ALREADY_EXISTS = 51
    NOT_FOUND = 52
    METHOD_UNKNOWN = 53
    NOT_SUPPORTED = 54

    # What we lack
    AUDIT_UNAVAILABLE = 60
    SESSION_STORE_UNAVAILABLE = 61
    KEYS_UNAVAILABLE = 62
    INFERENCE_UNAVAILABLE = 63
    OVERLOADED = 64
    DEADLINE_EXCEEDED = 65
    DRAINING = 66
    INTERNAL = 67
    CANCELLED = 68
    REVOCATIONS_UNKNOWN = 69

    # Keys and seals
    SEAL_BROKEN = 80
    KEYSTORE_UNAVAILABLE = 81
    CERTIFICATE_REQUEST_INVALID = 82
    KEY_REVOKED = 83
    KEY_IN_USE = 84

    # Retention
    LOG_PURGED = 90
    LOG_STATE = 91
    LOG_RETAINED = 92

    # Witnesses
    NOT_COSIGNED = 100

    # Minimum necessary
    OUTPUTS_WITHHELD = 140
    QUOTA_EXCEEDED = 141


CODES: Mapping[Reason, Code] = MappingProxyType(
    {
        # What is not listed is the caller's mistake in the request: INVALID_ARGUMENT.
        **dict.fromkeys(Reason, Code.INVALID_ARGUMENT),
        Reason.IDENTITY_INVALID: Code.UNAUTHENTICATED,
        Reason.IDENTITY_FORBIDDEN: Code.PERMISSION_DENIED,
        Reason.SESSION_MISSING: Code.UNAUTHENTICATED,
        Reason.SESSION_INVALID: Code.UNAUTHENTICATED,
        Reason.SESSION_EXPIRED: Code.UNAUTHENTICATED,
        Reason.SESSION_CERTIFICATE_MISMATCH: Code.UNAUTHENTICATED,
        Reason.LOGIN_FAILED: Code.UNAUTHENTICATED,
        Reason.CERTIFICATE_REVOKED: Code.UNAUTHENTICATED,
        Reason.SECOND_FACTOR_REQUIRED: Code.UNAUTHENTICATED,
        Reason.SECOND_FACTOR_WRONG: Code.UNAUTHENTICATED,
        Reason.STEP_UP_REQUIRED: Code.PERMISSION_DENIED,
        Reason.JOIN_TOKEN_UNKNOWN: Code.UNAUTHENTICATED,
        Reason.JOIN_TOKEN_USED: Code.UNAUTHENTICATED,
        Reason.JOIN_TOKEN_EXPIRED: Code.UNAUTHENTICATED,
        Reason.JOIN_TOKEN_MISMATCH: Code.UNAUTHENTICATED,
        Reason.PASSWORD_CHANGE_REQUIRED: Code.FAILED_PRECONDITION,
        Reason.RATE_LIMITED: Code.RESOURCE_EXHAUSTED,
        Reason.POLICY_DENIED: Code.PERMISSION_DENIED,
        Reason.POLICY_CHANGED: Code.ABORTED,
        Reason.MODEL_UNKNOWN: Code.NOT_FOUND,
        Reason.MODEL_NOT_READY: Code.UNAVAILABLE,
        Reason.MESSAGE_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
        Reason.ALREADY_EXISTS: Code.ALREADY_EXISTS,
        Reason.NOT_FOUND: Code.NOT_FOUND,
        Reason.METHOD_UNKNOWN: Code.UNIMPLEMENTED,
        Reason.NOT_SUPPORTED: Code.UNIMPLEMENTED,
        Reason.AUDIT_UNAVAILABLE: Code.UNAVAILABLE,
        Reason.SESSION_STORE_UNAVAILABLE: Code.UNAVAILABLE,
        Reason.KEYS_UNAVAILABLE: Code.UNAVAILABLE,
        Reason.INFERENCE_UNAVAILABLE: Code.UNAVAILABLE,
        Reason.OVERLOADED: Code.RESOURCE_EXHAUSTED,
        Reason.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
        Reason.DRAINING: Code.UNAVAILABLE,
        Reason.INTERNAL: Code.INTERNAL,
        Reason.CANCELLED: Code.CANCELLED,
        Reason.REVOCATIONS_UNKNOWN: Code.UNAVAILABLE,
        Reason.SEAL_BROKEN: Code.DATA_LOSS,
        Reason.KEYSTORE_UNAVAILABLE: Code.UNAVAILABLE,
        Reason.KEY_IN_USE: Code.FAILED_PRECONDITION,
        Reason.KEY_REVOKED: Code.FAILED_PRECONDITION,
        Reason.LOG_PURGED: Code.FAILED_PRECONDITION,
        Reason.LOG_STATE: Code.FAILED_PRECONDITION,
        Reason.LOG_RETAINED: Code.FAILED_PRECONDITION,
        Reason.NOT_COSIGNED: Code.UNAVAILABLE,
        Reason.OUTPUTS_WITHHELD: Code.PERMISSION_DENIED,
        Reason.QUOTA_EXCEEDED: Code.RESOURCE_EXHAUSTED,
    }
)
