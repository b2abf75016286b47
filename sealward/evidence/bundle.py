"""An evidence bundle: a folder of files that verify without Sealward.

    index.html                one offline page that checks itself in a browser, step by step
    README.txt                how to check the rest with openssl, sha256sum and Python
    log.vkey                  the verifier keys of the logs, one a line
    checkpoint                the signed checkpoint; `checkpoint-1`, … where there are several
    events/<id>.tlog-proof    the receipt (C2SP tlog-proof; its `extra` is salt ‖ entry)
    events/<id>.leaf          the entry, as it is hashed
    events/<id>.json          the opened content: by the operator's word

The sealed form of entries has no way to show that one of them opens to a text without giving away
the key of its whole segment (sealward/seal/entries.py). So page and README say what is proven, the
entry with its event id and binding, and what is not, the text. Who has the salt (from the caller's
receipt) and the digests of request and response can have the binding checked on the page too; that
proves model digest and outcome of the text as well.

The same events give the same files, byte for byte, and the same archive with the same zlib.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from importlib import resources
from typing import Any

from sealward.evidence.event import Event, EvidenceError
from sealward.evidence.fhir import instant
from sealward.evidence.readme import readme
from sealward.kit import attributes as names
from sealward.tlog.leaf import Outcome, binding, parse_leaf

MOST_EVENTS = 10_000
"""In one bundle: a page with more is no page for people."""

_OUTCOMES = {"ok": Outcome.OK, "denied": Outcome.DENIED, "failed": Outcome.FAILED}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller knows of its own call: the salt of its receipt, SHA-256 of both messages."""

    event_id: bytes
    salt: bytes = field(repr=False)
    request: bytes
    response: bytes


def check_call(event: Event, call: Call) -> None:
    """Check that an event's entry is about this call; raise EvidenceError."""
    outcome = _OUTCOMES.get(event.outcome, Outcome.FAILED)
    model = bytes.fromhex(event.text(names.MODEL_DIGEST))
    expected = binding(call.salt, call.request, call.response, model, outcome)
    if not compare_digest(expected, parse_leaf(event.leaf).binding):
        raise EvidenceError("the receipt, the request and the response are not of one call")


def opened_json(event: Event) -> dict[str, Any]:
    """Return the opened content of an event, as `events/<id>.json` has it."""
    span = event.span
    return {
        "event_id": event.id,
        "log": event.origin,
        "log_index": event.index,
        "span": {
            "name": span.name,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "start": instant(span.start),
            "end": instant(span.end),
            "attributes": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in sorted(span.attributes.items())
            },
        },
    }


def bundle_files(events: Sequence[Event], call: Call | None = None) -> dict[str, bytes]:
    """Return path → content of the bundle.

    `call` is about one of the events. Raise EvidenceError when there is no event, too many, or the
    call is none of theirs.
    """
    if not 1 <= len(events) <= MOST_EVENTS:
        raise EvidenceError(f"a bundle has 1 to {MOST_EVENTS} events")
    if call is not None:
        about = [event for event in events if event.event_id == call.event_id]
        if len(about) != 1:
            raise EvidenceError("the receipt is of an event that is not in the bundle")
        check_call(about[0], call)
    vkeys = "".join(
        sorted({f"{k}\n" for e in events for k in e.head.vkeys.splitlines() if k.strip()})
    )
    checkpoints = sorted({event.checkpoint for event in events})
    files: dict[str, bytes] = {"log.vkey": vkeys.encode()}
    for number, checkpoint in enumerate(checkpoints, 1):
        files["checkpoint" if len(checkpoints) == 1 else f"checkpoint-{number}"] = checkpoint
    for event in events:
        known = call if call is not None and call.event_id == event.event_id else None
        name = f"events/{event.id}"
        files[f"{name}.tlog-proof"] = event.proof(known.salt) if known else event.proof()
        files[f"{name}.leaf"] = event.leaf
        files[f"{name}.json"] = (
            json.dumps(opened_json(event), indent=2, ensure_ascii=False) + "\n"
        ).encode()
    files["README.txt"] = readme(events, list(files)).encode()
    files["index.html"] = _page(events, files, call)
    return dict(sorted(files.items()))


def archive(files: Mapping[str, bytes], folder: str) -> bytes:
    """Return the files as a zip archive below `folder`: sorted, no times, nobody's account."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as written:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100600 << 16
            written.writestr(entry, files[name])
    return out.getvalue()


def _page(events: Sequence[Event], files: Mapping[str, bytes], call: Call | None) -> bytes:
    """Return the page with the very files of the bundle inside."""
    data: dict[str, Any] = {
        "vkeys": _base64(files["log.vkey"]),
        "events": [
            {
                "id": event.id,
                "proof": _base64(files[f"events/{event.id}.tlog-proof"]),
                "opened": _base64(files[f"events/{event.id}.json"]),
                **(
                    {
                        "call": {
                            "request": call.request.hex(),
                            "response": call.response.hex(),
                        }
                    }
                    if call is not None and call.event_id == event.event_id
                    else {}
                ),
            }
            for event in events
        ],
    }
    style, script = _asset("page.css"), _asset("page.js")
    parts = {
        "SCRIPT_HASH": _source_hash(script),
        "STYLE_HASH": _source_hash(style),
        "STYLE": style,
        # The data is base64 and hex digits: nothing in it can end the element.
        "DATA": json.dumps(data, separators=(",", ":")),
        "SCRIPT": script,
    }
    page = _asset("index.html")
    for name, part in parts.items():
        before, mark, after = page.partition(f"%{name}%")
        if not mark:
            raise EvidenceError("the page's template is damaged")
        page = before + part + after
    return page.encode()


def _asset(name: str) -> str:
    return resources.files("sealward.evidence").joinpath("page", name).read_text(encoding="utf-8")


def _source_hash(content: str) -> str:
    """Return the hash that a Content-Security-Policy allows an inline element by."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
