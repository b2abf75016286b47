"""Events without the identifiers of 45 CFR 164.514(b)(2)(i). Pure: surrogates are passed in.

Nothing passes that is not listed here, and of what is listed only values of the form that the field
has: an enumerated code, a label, a digest, a whole number. A text that is of no such form may say
anything; it is refused whole, never searched for names. What identifies is replaced by a surrogate
(164.514(c): drawn at random, not derived from anything) or removed. Of times the year is kept.

Only events that this deployment's services wrote of themselves are taken: a span that another
program sent may name anybody.

No record of ours has an age or a geographic unit smaller than a state; were one to get such a
field, it would be removed as unknown.
"""

from __future__ import annotations

import csv as _csv
import datetime as dt
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from sealward.evidence.csv import safe
from sealward.evidence.event import Attribute, Event
from sealward.evidence.purposes import SYSTEM as PURPOSES
from sealward.evidence.purposes import WORDS
from sealward.kit import attributes as names
from sealward.kit.reasons import Code, Reason

PATIENT, ACTOR = "patient", "actor"

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "A": "names", "B": "geographic subdivisions smaller than a state",
        "C": "elements of dates other than the year", "D": "telephone numbers",
        "E": "fax numbers", "F": "electronic mail addresses", "G": "social security numbers",
        "H": "medical record numbers", "I": "health plan beneficiary numbers",
        "J": "account numbers", "K": "certificate and license numbers",
        "L": "vehicle identifiers", "M": "device identifiers and serial numbers", "N": "URLs",
        "O": "IP addresses", "P": "biometric identifiers", "Q": "full-face photographs",
        "R": "any other unique identifying number, characteristic or code",
    }
)  # fmt: skip
"""The identifiers of 164.514(b)(2)(i), by their letter."""

# Begins with a letter and has no long number in it: no telephone number, address or record number.
_LABEL = re.compile(r"(?=.{1,64}\Z)(?!.*[0-9]{5})[a-z][a-z0-9]*([._-][a-z0-9]+)*")
# Neither an address (four parts) nor a telephone number.
_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SERVICES = frozenset({"gateway", "inference", "audit", "keys"})
_FOREIGN = "otel.span"
_LARGEST = 10**9

Check = Callable[[Attribute], bool]


def _among(*values: str) -> Check:
    known = frozenset(values)
    return lambda value: isinstance(value, str) and value in known


def _like(form: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def _labels(value: Attribute) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, str) and _LABEL.fullmatch(item) for item in items)


def _number(value: Attribute) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _flag(value: Attribute) -> bool:
    return isinstance(value, bool)


_KEPT: Mapping[str, tuple[str, Check]] = MappingProxyType(
    {
        names.EVENT_TYPE: ("type", _among(*(names.EVENT_TYPES - {_FOREIGN}))),
        names.OUTCOME: ("outcome", _among(*names.OUTCOMES)),
        names.CODE: ("code", _among(*Code.__members__)),
        names.REASON: ("reason", _among(*Reason.__members__)),
        names.ACTOR_KIND: ("actor_kind", _among("user", "workload", "service", "admin")),
        names.ACTOR_ROLES: ("roles", _labels),
        names.PURPOSE: ("purpose", _among(*WORDS)),
        names.BREAK_GLASS: ("break_glass", _flag),
        names.BREAK_GLASS_REASON: ("break_glass_reason", _like(_LABEL)),
        names.MODEL_NAME: ("model", _like(_LABEL)),
        names.MODEL_VERSION: ("model_version", _like(_VERSION)),
        names.MODEL_DIGEST: ("model_digest", _like(_DIGEST)),
        names.ROWS: ("rows", _number),
        names.DETERMINISM: ("determinism", _among("strict", "tolerance")),
        names.DATA_CATEGORY: ("data_category", _like(_LABEL)),
        names.DATA_ORIGIN: ("data_origin", _like(_LABEL)),
        names.POLICY_ID: ("policy", _like(_LABEL)),
        names.POLICY_DIGEST: ("policy_digest", _like(_DIGEST)),
        names.INPUTS_DROPPED: ("inputs_dropped", _number),
        names.OUTPUTS_WITHHELD: ("outputs_withheld", _number),
        names.VERDICT: ("verdict", _like(_LABEL)),
    }
)
_REPLACED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {names.PATIENT: (PATIENT, "H"), names.ACTOR_ID: (ACTOR, "A")}
)
# Why what is removed is removed; whatever else there is, is of class R.
_REMOVED: Mapping[str, str] = MappingProxyType(
    {
        names.PATIENT_REFERENCE: "H", names.EVENT_ID: "R", names.SESSION_ID: "R",
        names.ACTOR_CERT: "K", names.ORGANIZATION: "B", names.PRODUCER_ID: "M",
        names.PRODUCER_INSTANCE: "M", names.RUNTIME_DIGEST: "M",
    }
)  # fmt: skip

COLUMNS = (
    "year", *(column for column, _ in _KEPT.values()), PATIENT, ACTOR,
)  # fmt: skip
"""The fields of a de-identified event."""


class Surrogates(Protocol):
    """Draws codes at random and remembers them."""

    def code(self, kind: str, identifier: str, event_id: bytes) -> str:
        """Return the code of an identifier, the same for as long as the surrogates live."""


class OneExport:
    """Surrogates of one export: nothing of them is kept, so nobody leads them back."""

    def __init__(self, draw: Callable[[], str]) -> None:
        """`draw` returns a random code, another each time."""
        self._draw = draw
        self._known: dict[tuple[str, str], str] = {}

    def code(self, kind: str, identifier: str, event_id: bytes) -> str:  # noqa: ARG002
        """See Surrogates."""
        key = (kind, identifier)
        if key not in self._known:
            self._known[key] = self._draw()
        return self._known[key]


class OfProject:
    """Surrogates that a project keeps. `draw` returns the codes of kind, identifier, event id."""

    def __init__(self, draw: Callable[[Sequence[tuple[str, str, bytes]]], Sequence[str]]) -> None:
        self._draw = draw
        self._known: dict[tuple[str, str], str] = {}

    def learn(self, people: Iterable[tuple[str, str, bytes]]) -> None:
        """Have the codes of people drawn who have none here yet."""
        new = {(kind, name): event for kind, name, event in people}
        asked = [(*key, event) for key, event in new.items() if key not in self._known]
        if asked:
            codes = self._draw(asked)
            self._known.update(zip(((kind, name) for kind, name, _ in asked), codes, strict=True))

    def code(self, kind: str, identifier: str, event_id: bytes) -> str:
        """See Surrogates."""
        if (kind, identifier) not in self._known:
            self.learn([(kind, identifier, event_id)])
        return self._known[kind, identifier]


@dataclass(slots=True)
class Report:
    """What was done, by attribute; `refused` are values that were not of their field's form."""

    events: int = 0
    left_out: int = 0
    removed: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    replaced: dict[str, set[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The report as a value for JSON; no value of an event is in it."""
        return {
            "rule": "45 CFR 164.514(b)(2)(i); codes: 164.514(c)",
            "events": self.events,
            "left_out": self.left_out,
            "kept": list(COLUMNS),
            "removed": [
                {"field": name, "class": letter, "what": CLASSES[letter], "values": count}
                for (name, letter), count in sorted(self.removed.items())
            ],
            "refused": [
                {"field": name, "values": count} for name, count in sorted(self.refused.items())
            ],
            "codes": {kind: len(codes) for kind, codes in sorted(self.replaced.items())},
            "not_claimed": "that nobody who gets the file knows how to identify a person with it "
            "(164.514(b)(2)(ii)): that is the covered entity's to judge",
        }


class Deidentifier:
    """Makes events without identifiers, and counts what it took away."""

    def __init__(self, surrogates: Surrogates) -> None:
        self._surrogates = surrogates
        self.report = Report()

    def people(self, event: Event) -> list[tuple[str, str]]:
        """Return kind and identifier of whom an event names and gets a code for."""
        if not _ours(event):
            return []
        attributes = event.span.attributes
        return [
            (kind, str(attributes[name]))
            for name, (kind, _) in _REPLACED.items()
            if name in attributes
        ]

    def record(self, event: Event) -> dict[str, Attribute] | None:
        """Return the fields of an event that may leave; None for an event that may not."""
        if not _ours(event):
            self.report.left_out += 1
            return None
        year = dt.datetime.fromtimestamp(event.span.start // 1_000_000_000, dt.UTC).year
        found: dict[str, Attribute] = {"year": year}
        for name, value in event.span.attributes.items():
            if name in _KEPT:
                column, fits = _KEPT[name]
                if fits(value):
                    found[column] = value
                else:
                    self.report.refused[name] += 1
            elif name in _REPLACED:
                kind, _ = _REPLACED[name]
                code = self._surrogates.code(kind, str(value), event.event_id)
                found[kind] = code
                self.report.replaced.setdefault(kind, set()).add(code)
            else:
                self.report.removed[name, _REMOVED.get(name, "R")] += 1
        for name, letter in (("time", "C"), ("trace", "R"), ("log", "N"), ("receipt", "R")):
            self.report.removed[name, letter] += 1
        self.report.events += 1
        return {column: found[column] for column in COLUMNS if column in found}

    def records(self, events: Iterable[Event]) -> Iterator[dict[str, Attribute]]:
        """Yield the records of events that may leave."""
        for event in events:
            record = self.record(event)
            if record is not None:
                yield record


def _ours(event: Event) -> bool:
    producer = event.text(names.PRODUCER_ID).split("#", 1)[0]
    return event.type != _FOREIGN and producer in _SERVICES


def csv_lines(records: Iterable[Mapping[str, Attribute]]) -> Iterator[str]:
    """Yield a heading and a line (RFC 4180) a record, safe to open in a spreadsheet."""
    yield _line(COLUMNS)
    for record in records:
        yield _line([safe(_text(record.get(column, ""))) for column in COLUMNS])


def fhir_line(record: Mapping[str, Attribute]) -> str:
    """Return a record as FHIR R4 AuditEvent, one line of NDJSON.

    `recorded` is an instant and cannot be a year: it is masked, as FHIR has it for that.
    """
    resource = {
        "resourceType": "AuditEvent",
        "meta": {"security": [_coding(_OBSERVATION_VALUE, "PSEUDED", "pseudonymized")]},
        "type": _coding("urn:sealward:event-type", _text(record.get("type", "otel.span"))),
        "period": {"start": str(record["year"]), "end": str(record["year"])},
        "_recorded": {"extension": [{"url": _ABSENT, "valueCode": "masked"}]},
        "outcome": {"ok": "0", "denied": "4"}.get(_text(record.get("outcome", "ok")), "8"),
        "agent": [_agent(record)],
        "source": {"observer": {"display": "Sealward"}},
        "entity": [*_patient(record), _details(record)],
    }
    if "purpose" in record:
        code = _text(record["purpose"])
        resource["purposeOfEvent"] = [{"coding": [_coding(PURPOSES, code, WORDS[code])]}]
    return json.dumps(resource, ensure_ascii=False, separators=(",", ":")) + "\n"


_OBSERVATION_VALUE = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_SHOWN = frozenset({"year", "type", "outcome", "purpose", "roles", PATIENT, ACTOR})


def _agent(record: Mapping[str, Attribute]) -> dict[str, Any]:
    agent: dict[str, Any] = {"requestor": True}
    if ACTOR in record:
        value = _text(record[ACTOR])
        agent["who"] = {"identifier": {"system": "urn:sealward:deid:actor", "value": value}}
    roles = _text(record.get("roles", "")).split()
    if roles:
        agent["role"] = [{"coding": [_coding("urn:sealward:role", role)]} for role in roles]
    return agent


def _patient(record: Mapping[str, Attribute]) -> list[dict[str, Any]]:
    if PATIENT not in record:
        return []
    identifier = {"system": "urn:sealward:deid:patient", "value": _text(record[PATIENT])}
    return [{"what": {"type": "Patient", "identifier": identifier}}]


def _details(record: Mapping[str, Attribute]) -> dict[str, Any]:
    detail = [
        {"type": column, "valueString": _text(value)}
        for column, value in record.items()
        if column not in _SHOWN
    ]
    return {"what": {"display": "event"}, **({"detail": detail} if detail else {})}


def _coding(system: str, code: str, display: str = "") -> dict[str, str]:
    return {"system": system, "code": code, **({"display": display} if display else {})}


def _text(value: Attribute) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO(newline="")
    _csv.writer(out).writerow(cells)
    return out.getvalue()
