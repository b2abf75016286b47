"""Inputs that a model does not declare: which of their names a record may repeat. Pure.

Minimum necessary (45 CFR 164.502(b), 164.514(d)): what a model has no use for is not given to it.
An input's name is the caller's own text and may be a patient's, so only names that everybody knows
are repeated; the others are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MOST_NAMES = 16
_MOST_BYTES = 192  # of all names together: an entry of the log has little room
_SEPARATORS = re.compile(r"[^a-z0-9]+")

KNOWN_NAMES = frozenset(
    {
        # The identifiers of 45 CFR 164.514(b)(2)(i), as requests usually name them.
        "name", "patient_name", "first_name", "last_name", "given_name", "family_name",
        "middle_name", "maiden_name", "mother_maiden_name", "patient",
        "address", "street", "city", "county", "state", "zip", "zip_code", "postal_code",
        "date_of_birth", "birth_date", "dob", "date_of_death", "admission_date",
        "discharge_date", "age",
        "phone", "phone_number", "telephone", "mobile", "fax", "fax_number", "email",
        "email_address", "ssn", "social_security_number", "mrn", "medical_record_number",
        "patient_id", "member_id", "health_plan_number", "insurance_number", "account_number",
        "license_number", "certificate_number", "vehicle", "vin", "license_plate", "device_id",
        "device_serial_number", "serial_number", "url", "ip", "ip_address", "fingerprint",
        "voice", "biometric", "photo", "face", "image", "visit_number", "encounter_id",
        # What else comes along with them.
        "sex", "gender", "race", "ethnicity", "religion", "language", "marital_status",
        "country", "provider", "physician", "facility", "diagnosis", "note", "notes", "comment",
        "pid", "obx", "msh",
    }
)  # fmt: skip
"""Names, in lower case with one underscore between words, that may stand in a record."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many inputs of a request were dropped, and those of their names that may be repeated."""

    count: int
    names: tuple[str, ...] = ()


def dropped(names: Iterable[str]) -> Dropped:
    """Count, and keep known names, written their usual way, sorted, each once."""
    found: set[str] = set()
    count = 0
    for name in names:
        count += 1
        usual = _SEPARATORS.sub("_", name[:64].lower()).strip("_")
        if usual in KNOWN_NAMES:
            found.add(usual)
    kept: list[str] = []
    room = _MOST_BYTES
    for name in sorted(found)[:MOST_NAMES]:
        room -= len(name)
        if room < 0:
            break
        kept.append(name)
    return Dropped(count, tuple(kept))
