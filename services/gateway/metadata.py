"""The request metadata that Sealward reads. Everything else is ignored and never kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sealward.kit.errors import SealwardError
from sealward.kit.patient import DESCRIPTION as REFERENCE_DESCRIPTION
from sealward.kit.patient import is_reference
from sealward.kit.reasons import Reason
from sealward.kit.spans import TraceParent, parse_traceparent
from services.gateway.purposes import PURPOSES

AUTHORIZATION = "authorization"
TRACEPARENT = "traceparent"
PURPOSE = "sealward-purpose"
PATIENT = "sealward-patient"
SEQ = "sealward-seq"
IDEMPOTENCY_KEY = "sealward-idempotency-key"
OWN_PREFIX = "sealward-"
KNOWN = frozenset({PURPOSE, PATIENT, SEQ, IDEMPOTENCY_KEY})

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_SEQ = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Headers:
    """What a call's metadata says. Empty texts and None: not given.

    `seq` is the caller's own number of the call in its session, below 2^63;
    `patient` is a reference in clear, which goes to audit and nowhere else.
    """

    purpose: str = ""
    patient: str = ""
    seq: int | None = None
    parent: TraceParent | None = None


NONE = Headers()


def bearer_token(metadata: Mapping[str, str | bytes]) -> str:
    """Return the session token; raise SESSION_MISSING, or SESSION_INVALID for one without form."""
    value = metadata.get(AUTHORIZATION, "")
    if not isinstance(value, str) or not value:
        raise SealwardError(Reason.SESSION_MISSING, "log in and send authorization: Bearer <token>")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise SealwardError(Reason.SESSION_MISSING, "authorization must be of scheme Bearer")
    if not _TOKEN.fullmatch(token):
        raise SealwardError(Reason.SESSION_INVALID, "the session token is not known")
    return token


def read_headers(metadata: Mapping[str, str | bytes]) -> Headers:
    """Read and check the metadata; raise METADATA_UNKNOWN, METADATA_INVALID, PURPOSE_UNKNOWN.

    NOT_SUPPORTED for an idempotency key: this version knows it and does not serve it, and to
    ignore it would run a call twice.
    """
    parent = None
    traceparent = metadata.get(TRACEPARENT)
    if isinstance(traceparent, str):
        parent = parse_traceparent(traceparent)
    own = [key for key in metadata if key.startswith(OWN_PREFIX)]
    if not own:
        return NONE if parent is None else Headers(parent=parent)
    for key in own:
        if key not in KNOWN:
            # Its name is the caller's and may say anything: it is not repeated.
            raise SealwardError(
                Reason.METADATA_UNKNOWN,
                "a sealward-* metadata key is not known; known are " + ", ".join(sorted(KNOWN)),
            )
    if IDEMPOTENCY_KEY in metadata:
        raise SealwardError(
            Reason.NOT_SUPPORTED,
            "idempotency keys are not served by this version",
            field=IDEMPOTENCY_KEY,
        )
    purpose = metadata.get(PURPOSE, "")
    if PURPOSE in metadata and purpose not in PURPOSES:
        raise SealwardError(
            Reason.PURPOSE_UNKNOWN, "not a code of HL7 v3 PurposeOfUse", field=PURPOSE
        )
    patient = metadata.get(PATIENT, "")
    if PATIENT in metadata and not (isinstance(patient, str) and is_reference(patient)):
        raise SealwardError(
            Reason.METADATA_INVALID, f"must be {REFERENCE_DESCRIPTION}", field=PATIENT
        )
    seq = _matching(metadata, SEQ, _SEQ, "a decimal number of at most 19 digits")
    number = int(seq) if seq else None
    if number is not None and number >> 63:
        raise SealwardError(Reason.METADATA_INVALID, "must be below 2^63", field=SEQ)
    return Headers(str(purpose), str(patient), number, parent)


def check_patient_reference(patient: str, field: str) -> None:
    """Raise FIELD_INVALID for what is no patient reference."""
    if not is_reference(patient):
        raise SealwardError(Reason.FIELD_INVALID, f"must be {REFERENCE_DESCRIPTION}", field=field)


def _matching(
    metadata: Mapping[str, str | bytes], key: str, form: re.Pattern[str], description: str
) -> str:
    value = metadata.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or not form.fullmatch(value):
        raise SealwardError(Reason.METADATA_INVALID, f"must be {description}", field=key)
    return value
