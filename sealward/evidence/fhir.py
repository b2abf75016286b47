"""FHIR R4 AuditEvent, as IHE Basic Audit Log Patterns (BALP) 1.1 asks for them.

Profiles that are claimed in `meta.profile`, by what happened:

- a prediction about a patient, answered: `PatientRead`; without a patient: `Read`
- what an accounting of disclosures has to list: `PrivacyDisclosure.Source`
- a refusal: a security alert with BALP's subtype for decisions by role. No profile is claimed: the
  one for authorization decisions asks for a consent on file.
- anything else: DICOM's codes for the kind of activity, no profile.

The certificate's URI stands where the profiles want a network address: addresses are not recorded.
A trace is an entity of type `Traceparent` (W3C Trace Context), as BALP's branch for it has it. The
entity of what was done carries log index, event id and receipt in `detail`, so that each line can
be checked against the log: `receipt` is a C2SP tlog-proof.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sealward.evidence.event import Event
from sealward.evidence.purposes import INSIDE, NOT_ACCOUNTED, WORDS
from sealward.evidence.purposes import SYSTEM as PURPOSES
from sealward.kit import attributes as names

DICOM = "http://dicom.nema.org/resources/ontology/DCM"
BALP = "https://profiles.ihe.net/ITI/BALP"
_HL7 = "http://terminology.hl7.org/CodeSystem"
_REST = "http://hl7.org/fhir/restful-interaction"
_EVENT_TYPE, _ACTOR, _ROLE, _CERTIFICATE = (
    "urn:sealward:event-type", "urn:sealward:actor", "urn:sealward:role",
    "urn:sealward:spki-sha256",
)  # fmt: skip
_SERVICE, _EVENT, _PATIENT, _PSEUDONYM, _ORGANIZATION, _POLICY = (
    "urn:sealward:service", "urn:sealward:event", "urn:sealward:patient",
    "urn:sealward:patient-pseudonym", "urn:sealward:organization", "urn:sealward:policy:",
)  # fmt: skip

_DCM: Mapping[str, str] = MappingProxyType(
    {
        "110100": "Application Activity", "110101": "Audit Log Used", "110106": "Export",
        "110113": "Security Alert", "110114": "User Authentication", "110120": "Application Start",
        "110121": "Application Stop", "110122": "Login", "110123": "Logout",
        "110129": "Security Configuration", "110131": "Software Configuration",
        "110137": "User security Attributes Changed", "110152": "Destination Role ID",
        "110153": "Source Role ID",
    }
)  # fmt: skip

# Event type, or its part before the dot → type, subtype, action.
_KINDS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "session.login": ("110114", "110122", "E"),
        "session.logout": ("110114", "110123", "E"),
        "session": ("110113", "110137", "U"),
        "user.create": ("110113", "110137", "C"),
        "user": ("110113", "110137", "U"),
        "keys": ("110113", "110129", "E"),
        "model": ("110100", "110131", "E"),
        "service.start": ("110100", "110120", "E"),
        "service.stop": ("110100", "110121", "E"),
        "audit.start": ("110100", "110120", "E"),
        "audit.export": ("110101", "110106", "R"),
        "audit.review": ("110101", "", "U"),
        "audit": ("110101", "", "R"),
        "log": ("110101", "", "R"),
    }
)

# What FHIR calls comparable to HTTP 400: the caller's doing. All else is comparable to 500.
_CALLERS = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE",
     "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "CANCELLED", "ABORTED"}
)  # fmt: skip
_DETAILS = (
    names.SESSION_ID, names.CODE, names.REASON, names.BREAK_GLASS, names.BREAK_GLASS_REASON,
    names.MODEL_NAME, names.MODEL_VERSION, names.MODEL_DIGEST, names.INPUT_DIGEST,
    names.OUTPUT_DIGEST, names.ROWS, names.BATCH_SIZE, names.BATCH_POSITION, names.DATA_CATEGORY,
    names.DATA_ORIGIN, names.POLICY_ID, names.POLICY_DIGEST, names.CALLER_SEQ,
    names.RUNTIME_DIGEST, names.DETERMINISM, names.PRODUCER_ID, names.PRODUCER_SEQ, names.TARGET,
    names.COUNT, names.VERDICT, names.METHOD,
)  # fmt: skip


def audit_event(event: Event) -> dict[str, Any]:
    """Return the AuditEvent of an event. The patient is in clear where the span has it so."""
    profile = _profile(event)
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": event.id,
        **({"meta": {"profile": [profile]}} if profile else {}),
        **_what(event, profile),
        "period": {"start": instant(event.span.start), "end": instant(event.span.end)},
        "recorded": instant(event.span.end),
        "outcome": _outcome(event),
    }
    said = " ".join(filter(None, (event.text(names.CODE), event.text(names.REASON))))
    if said and event.outcome != "ok":
        resource["outcomeDesc"] = said
    purpose = event.text(names.PURPOSE)
    if purpose:
        resource["purposeOfEvent"] = [{"coding": [_purpose(purpose)]}]
    resource["agent"] = _agents(event, purpose)
    resource["source"] = {
        "site": event.origin,
        "observer": _server(event),
        "type": [_coding(f"{_HL7}/security-source-type", "4", "Application Server")],
    }
    resource["entity"] = _entities(event)
    return resource


def ndjson_line(event: Event) -> str:
    """Return the AuditEvent as one line of NDJSON, with its newline."""
    return json.dumps(audit_event(event), ensure_ascii=False, separators=(",", ":")) + "\n"


def is_disclosure(event: Event) -> bool:
    """True when patient data went out in a way that an accounting has to list.

    Reading the audit is an operation of its own (auditing, 45 CFR 164.501); handing events out of
    the suite is not. Breaking the glass hands nothing out: each call under it is an event. Leading
    a code back tells a privacy officer of the house, and nobody outside.
    """
    if event.outcome != "ok" or not event.patient or event.type in INSIDE:
        return False
    if event.type.startswith("audit."):
        return event.type == "audit.export"
    return event.text(names.PURPOSE) not in NOT_ACCOUNTED


def _profile(event: Event) -> str:
    if is_disclosure(event):
        name = "PrivacyDisclosure.Source"
    elif event.type == "inference.predict" and event.outcome == "ok":
        name = "PatientRead" if event.patient else "Read"
    else:
        return ""
    return f"{BALP}/StructureDefinition/IHE.BasicAudit.{name}"


def _what(event: Event, profile: str) -> dict[str, Any]:
    """Type, subtype and action."""
    own = _coding(_EVENT_TYPE, event.type)
    if is_disclosure(event):
        disclose = _coding(
            f"{_HL7}/iso-21089-lifecycle", "disclose", "Disclose Record Lifecycle Event"
        )
        return {"type": _dcm("110106"), "subtype": [disclose, own], "action": "R"}
    if profile:
        return {
            "type": _coding(f"{_HL7}/audit-event-type", "rest", "Restful Operation"),
            "subtype": [_coding(_REST, "read", "read"), own],
            "action": "R",
        }
    if event.outcome == "denied":
        role = _coding(
            f"{BALP}/CodeSystem/AuthZsubType",
            "AuthZ-Role",
            "Authorization Decision using only Roles",
        )
        return {"type": _dcm("110113"), "subtype": [role, own], "action": "E"}
    kind, sub, action = _KINDS.get(
        event.type, _KINDS.get(event.type.split(".", 1)[0], ("110100", "", "E"))
    )
    return {"type": _dcm(kind), "subtype": [*([_dcm(sub)] if sub else []), own], "action": action}


def _outcome(event: Event) -> str:
    if event.outcome == "ok":
        return "0"
    code = event.text(names.CODE)
    if code == "DATA_LOSS":
        return "12"
    return "4" if event.outcome == "denied" or code in _CALLERS else "8"


def _agents(event: Event, purpose: str) -> list[dict[str, Any]]:
    """Return user, client, server and organization. Exactly one of them is the requestor."""
    kind = event.text(names.ACTOR_KIND) or "user"
    actor = event.text(names.ACTOR_ID)
    agents: list[dict[str, Any]] = []
    if actor:
        user: dict[str, Any] = {
            "type": _concept(f"{_HL7}/v3-ParticipationType", "IRCP", "information recipient"),
            "who": {"identifier": {"system": _ACTOR, "value": actor}},
            "requestor": True,
        }
        roles = event.text(names.ACTOR_ROLES).split()
        if roles:
            user["role"] = [_concept(_ROLE, role) for role in roles]
        if event.text(names.POLICY_ID):
            user["policy"] = [_POLICY + event.text(names.POLICY_ID)]
        if purpose:
            user["purposeOfUse"] = [{"coding": [_purpose(purpose)]}]
        agents.append(user)
    name = f"{kind}/{actor}" if actor else f"service/{event.text(names.PRODUCER_ID) or 'unknown'}"
    certificate = event.text(names.ACTOR_CERT)
    agents.append(
        {
            "type": {"coding": [_dcm("110152")]},
            "who": {"identifier": {"system": _CERTIFICATE, "value": certificate}}
            if certificate
            else {"display": name},
            "requestor": not actor,
            "network": _uri(event, name),
        }
    )
    agents.append(
        {
            "type": {"coding": [_dcm("110153")]},
            "who": _server(event),
            "requestor": False,
            "network": _uri(event, f"service/{_producer(event)}"),
        }
    )
    organization = event.text(names.ORGANIZATION)
    if organization:
        agents.append(
            {
                "type": _concept(f"{_HL7}/v3-RoleClass", "PROV", "healthcare provider"),
                "who": {"identifier": {"system": _ORGANIZATION, "value": organization}},
                "requestor": False,
            }
        )
    return agents


def _producer(event: Event) -> str:
    return event.text(names.PRODUCER_ID).split("#", 1)[0] or "audit"


def _server(event: Event) -> dict[str, Any]:
    return {"identifier": {"system": _SERVICE, "value": _producer(event)}}


def _uri(event: Event, path: str) -> dict[str, str]:
    address = path if "://" in path else f"spiffe://{event.trust_domain}/{path}"
    return {"address": address, "type": "5"}


def _entities(event: Event) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if event.patient:
        entities.append(
            {
                "what": _patient(event),
                "type": _coding(f"{_HL7}/audit-entity-type", "1", "Person"),
                "role": _coding(f"{_HL7}/object-role", "1", "Patient"),
            }
        )
    done = {
        "what": {"identifier": {"system": _EVENT, "value": event.id}},
        "type": _coding(f"{_HL7}/audit-entity-type", "2", "System Object"),
        "role": _coding(f"{_HL7}/object-role", "3", "Report"),
        "name": event.type,
        "detail": [
            _detail("log", event.origin),
            _detail("log-index", str(event.index)),
            _detail("event-id", event.id),
            {"type": "receipt", "valueBase64Binary": base64.b64encode(event.proof()).decode()},
            *(_detail(name, event.text(name)) for name in _DETAILS if event.text(name)),
        ],
    }
    entities.append(done)
    if event.span.trace_id:
        traceparent = f"00-{event.span.trace_id}-{event.span.span_id}-00"
        entities.append(
            {
                "what": {"identifier": {"value": traceparent}},
                "type": _coding(f"{BALP}/CodeSystem/BasicAuditEntityType", "Traceparent"),
            }
        )
    return entities


def _patient(event: Event) -> dict[str, Any]:
    system = _PATIENT if event.identified else _PSEUDONYM
    return {"type": "Patient", "identifier": {"system": system, "value": event.patient}}


def _detail(name: str, value: str) -> dict[str, str]:
    return {"type": name, "valueString": value}


def _purpose(code: str) -> dict[str, str]:
    return _coding(PURPOSES, code, WORDS.get(code, ""))


def _dcm(code: str) -> dict[str, str]:
    return _coding(DICOM, code, _DCM[code])


def _concept(system: str, code: str, display: str = "") -> dict[str, Any]:
    return {"coding": [_coding(system, code, display)]}


def _coding(system: str, code: str, display: str = "") -> dict[str, str]:
    return {"system": system, "code": code, **({"display": display} if display else {})}


def instant(nanos: int) -> str:
    """Return a time (nanoseconds since the epoch) as a FHIR instant: UTC, milliseconds."""
    moment = dt.datetime.fromtimestamp(nanos // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000 % 1000:03d}Z"
