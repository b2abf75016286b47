"""The report: what it says, how it is written down, what of it the log vouches for.

The digest is SHA-256 over the report without its `attestation`, as canonical JSON: keys sorted, no
spaces, UTF-8, no numbers but integers.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from sealward.api.audit.v1.attest_pb2 import AttestReportRequest
from sealward.check.deployment import Report
from sealward.check.row import Result, State
from sealward.tlog.errors import TlogError
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import Verifier
from sealward.tlog.receipt import VerifiedReceipt, verify_receipt

FORMAT = "sealward-safeguards-check/1"
KIND = "safeguards"
STATEMENT = (
    "This report says what was tried on one deployment at one time, and how it ended. It is no "
    "certification, no legal advice and no risk analysis. What could not be tested is not met. "
    "Each row names what the covered entity still has to do itself."
)


class ReportError(Exception):
    """A file is no report, or nobody vouches for it. The text says which."""


def build(
    results: Sequence[Result], profile: str, about: Mapping[str, Any], last: Report | None
) -> dict[str, Any]:
    """Return a report, without attestation. `about` names deployment, times and options."""
    counts = Counter(result.state for result in results)
    made = {
        "format": FORMAT,
        **about,
        "profile": profile,
        "counts": {str(state): counts[state] for state in State},
        "statement": STATEMENT,
        "rows": [_row(result, profile) for result in results],
    }
    if last is not None:
        made["changes"] = changes(last, results)
        made["compared_with"] = {"ended": last.ended, "event_id": last.event_id}
    return made


def _row(result: Result, profile: str) -> dict[str, Any]:
    row, notes = result.row, result.notes
    return {
        "id": row.id,
        "title": row.title,
        "rule": row.rule(profile),
        "state": str(result.state),
        "reason": result.reason,
        "evidence": notes.evidence,
        "limits": notes.limits,
        "duty": row.duty,
        "took_ms": result.took_ms,
    }


def changes(last: Report, results: Sequence[Result]) -> list[dict[str, str]]:
    """Return the rows that ended otherwise than the last time; `none` = was not in that report."""
    found = []
    for result in results:
        before = last.states.get(result.row.id, "none")
        if before != result.state:
            found.append({"id": result.row.id, "before": before, "after": str(result.state)})
    return found


def canonical(report: Mapping[str, Any]) -> bytes:
    """Return what the digest is made over."""
    kept = {name: value for name, value in report.items() if name != "attestation"}
    return json.dumps(
        kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(report: Mapping[str, Any]) -> bytes:
    """Return SHA-256 of the canonical form, 32 bytes."""
    return sha256(canonical(report)).digest()


def attested(report: Mapping[str, Any], event_id: bytes, receipt: bytes) -> dict[str, Any]:
    """Return the report with the log's word for it."""
    attestation = {
        "event_id": event_id.hex(),
        "sha256": digest(report).hex(),
        "receipt": base64.b64encode(receipt).decode("ascii"),
    }
    return {**report, "attestation": attestation}


def read(data: bytes) -> dict[str, Any]:
    """Parse a report; raise ReportError."""
    try:
        found = json.loads(data, object_pairs_hook=_once, parse_float=_no_float)
    except (ValueError, RecursionError):
        raise ReportError("this is no report: not JSON, or a key twice") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ReportError(f"this is no report of the format {FORMAT}")
    rows = found.get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("id"), str) and row.get("state") in set(State)
        for row in rows
    ):
        raise ReportError("its rows cannot be read")
    return found


def verify(report: Mapping[str, Any], vkeys: Sequence[Verifier]) -> VerifiedReceipt:
    """Return what the log says of a report; raise ReportError when it does not vouch for it."""
    attestation = report.get("attestation")
    try:
        receipt = base64.b64decode(attestation["receipt"], validate=True)  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise ReportError("nobody vouches for this report: it has no attestation") from None
    request = AttestReportRequest(kind=KIND, sha256=digest(report))
    try:
        return verify_receipt(
            receipt,
            vkeys=vkeys,
            request_digest=sha256(request.SerializeToString(deterministic=True)).digest(),
            response_digest=b"",
            model_digest=b"",
            outcome=Outcome.OK,
        )
    except TlogError as error:
        raise ReportError(f"the log does not vouch for this report: {error}") from None


def earlier(report: Mapping[str, Any], event_id: str) -> Report:
    """Return a report that holds as the one to compare with."""
    states = {row["id"]: row["state"] for row in report["rows"]}
    return Report(str(report.get("ended", "")), states, event_id)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_float(_text: str) -> Any:
    raise ValueError
