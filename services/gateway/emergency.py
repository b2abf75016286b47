"""Breaking the glass (45 CFR 164.312(a)(2)(ii)): for one patient, for a short time, seen by all.

It needs nobody's approval and nothing outside of this deployment, so it works while an identity
provider or an approver is away. What is done under it is marked in the record and waits for review.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from types import MappingProxyType

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.session import Session

ROLE = "break-glass"
"""Who has this role may break the glass; a session that did has this role alone."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "life-threat": "a life is in danger",
        "unconscious": "the patient cannot consent",
        "no-approver": "nobody who could approve can be reached",
        "system-outage": "the usual way in is out of order",
        "disaster": "a disaster with many patients",
        "other": "another reason, to be told in the review",
    }
)
"""Codes, because free text may name a patient."""


def patient_mark(session_id: str, patient: str) -> str:
    """Return what a session holds of its patient: not the reference, and of no other session."""
    return hashlib.sha256(f"{session_id}\n{patient}".encode()).hexdigest()


def check_patient(session: Session, patient: str) -> None:
    """Raise POLICY_DENIED when a call under broken glass is not about the session's patient."""
    if session.break_glass and not hmac.compare_digest(
        patient_mark(session.session_id, patient), session.patient
    ):
        raise SealwardError(
            Reason.POLICY_DENIED,
            "this emergency access is for one patient: name that one in sealward-patient",
            field="sealward-patient",
        )
