"""Event ids in FHIR resources: AuditEvents of an export of ours, or whatever carries one.

An event id is
- the value of an Identifier with system `urn:sealward:event`, anywhere in a resource;
- the value of an extension with that URL;
- a `detail` of type `event-id`, as `sealward audit export --format fhir` writes it.

A resource that has one id and our details for session and number gives these too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from sealward.kit import attributes as names
from sealward.reconcile.items import (
    EVENT_SYSTEM,
    Found,
    Item,
    ItemError,
    Malformed,
    Other,
    item_of,
    read_id,
)

_DETAILS = {
    names.SESSION_ID: "session", names.CALLER_SEQ: "seq", "log": "log", "log-index": "log_index"
}  # fmt: skip
_OK = "0"


def is_resource(values: Any) -> bool:
    """Whether a JSON value is a FHIR resource."""
    return isinstance(values, Mapping) and isinstance(values.get("resourceType"), str)


def read_resource(number: int, resource: Mapping[str, Any]) -> Iterator[Found]:
    """Read a resource, or what a Bundle of resources holds; `number` names where it stands."""
    waiting: deque[Any] = deque([resource])
    while waiting:
        found = waiting.popleft()
        if found is None:
            yield Other(number)
        elif not is_resource(found):
            yield Malformed(number)
        elif found["resourceType"] == "Bundle":
            waiting.extend(resources_of(found))
        else:
            yield from _resource(number, found)


def resources_of(bundle: Mapping[str, Any]) -> list[Any]:
    """Return what the entries of a Bundle hold, None for one that holds no resource."""
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        return [False]
    return [entry.get("resource") if isinstance(entry, Mapping) else False for entry in entries]


def _resource(number: int, resource: Mapping[str, Any]) -> Iterator[Found]:
    values: list[Any] = []
    details: dict[str, Any] = {}
    waiting: list[Any] = [resource]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, Mapping):
            values += _values(part)
            name = _DETAILS.get(str(part.get("type")))
            if name is not None and isinstance(part.get("valueString"), str):
                details[name] = part["valueString"]
            waiting += part.values()
    try:
        ids = list(dict.fromkeys(read_id(value) for value in values))
        if len(ids) == 1:
            outcome = "ok" if resource.get("outcome") == _OK else ""
            yield item_of(number, {**details, "event_id": ids[0].hex(), "outcome": outcome})
        else:
            yield from (Item(number, one) for one in ids)
    except ItemError:
        yield Malformed(number)
        return
    if not ids:
        yield Other(number)


def _values(part: Mapping[str, Any]) -> list[Any]:
    """Return what an object says are event ids."""
    if part.get("system") == EVENT_SYSTEM and "value" in part:
        return [part["value"]]
    if part.get("url") == EVENT_SYSTEM:
        # A value that is an Identifier of ours is found on its own.
        return [v for key, v in part.items() if key.startswith("value") and isinstance(v, str)]
    if part.get("type") == "event-id" and "valueString" in part:
        return [part["valueString"]]
    return []
