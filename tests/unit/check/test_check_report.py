"""The runner's states, and the report that the log vouches for: every change of it is found."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import Any

import pytest

from sealward.api.audit.v1.attest_pb2 import AttestReportRequest
from sealward.check import report as reports
from sealward.check.deployment import Settings
from sealward.check.row import Notes, Result, Row, State
from sealward.check.runner import READ_ONLY, run
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.leaf import Outcome, binding, leaf_prefix
from sealward.tlog.merkle import leaf_hash
from sealward.tlog.note import Ed25519Signer, parse_vkey, sign_note
from sealward.tlog.receipt import format_receipt


class Nothing:
    """A deployment that a row of these tests does not ask."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.settings = Settings("current", "ZZPHICANARY0", read_only=read_only)


def row(do: Any, name: str = "AC-01", **options: Any) -> Row:
    return Row(name, "title", "rule", "proposed", "proves", "not", "duty", do, **options)


def ended(do: Any, *, read_only: bool = False, **options: Any) -> Result:
    deployment: Any = Nothing(read_only=read_only)
    (result,) = run(deployment, [row(do, **options)])
    return result


def raises(_deployment: Any, notes: Notes) -> None:
    notes.held("something")
    raise RuntimeError("MRN-1 in a text of somebody else")


def faulty_then_raises(deployment: Any, notes: Notes) -> None:
    notes.fault("wrong")
    raises(deployment, notes)


@pytest.mark.parametrize(
    ("do", "state", "reason"),
    [
        (lambda _d, notes: notes.held("a"), State.MET, ""),
        (lambda _d, _n: None, State.NOT_TESTABLE, "nothing could be looked at"),
        (lambda _d, notes: notes.limit("a"), State.NOT_TESTABLE, "nothing could be looked at"),
        (lambda _d, notes: notes.check(False, "a", "b"), State.FAILED, "b"),
        (lambda _d, notes: notes.cannot("why"), State.NOT_TESTABLE, "why"),
        (raises, State.NOT_TESTABLE, "the row ended with RuntimeError"),
        (faulty_then_raises, State.FAILED, "wrong"),
    ],
)
def test_a_state_is_never_guessed(do: Any, state: State, reason: str) -> None:
    result = ended(do)
    assert (result.state, result.reason) == (state, reason)
    assert "MRN-1" not in str(result)


def test_a_row_that_writes_is_not_run_read_only() -> None:
    result = ended(lambda _d, notes: notes.held("it ran"), read_only=True)
    assert (result.state, result.reason) == (State.NOT_TESTABLE, READ_ONLY)
    assert not result.notes.evidence
    looked = ended(lambda _d, notes: notes.held("it ran"), read_only=True, writes=False)
    assert looked.state is State.MET


def test_rows_that_look_back_come_last() -> None:
    deployment: Any = Nothing()
    rows = [row(raises, "EV-01", last=True), row(raises, "AC-01")]
    assert [result.row.id for result in run(deployment, rows)] == ["AC-01", "EV-01"]


# --- the report ------------------------------------------------------------------------------


def made(*, last: Any = None) -> dict[str, Any]:
    results = [
        ended(lambda _d, notes: notes.held("a"), name="AC-01"),
        ended(lambda _d, notes: notes.fault("b"), name="AC-02"),
    ]
    return reports.build(results, "nprm", {"ended": "2026-11-24T00:00:00Z"}, last)


class Log:
    """A log of one entry, with a key of its own: it vouches for what it is asked to."""

    def __init__(self) -> None:
        self.signer, _ = Ed25519Signer.generate("log.example/1")
        self.vkeys = [parse_vkey(self.signer.vkey)]

    def vouch(self, report: dict[str, Any], kind: str = reports.KIND) -> dict[str, Any]:
        request = AttestReportRequest(kind=kind, sha256=reports.digest(report))
        salt, event = b"s" * 32, bytes(6) + b"\x70\x00\x80" + bytes(7)
        digest = sha256(request.SerializeToString(deterministic=True)).digest()
        leaf = leaf_prefix(event, binding(salt, digest, b"", b"", Outcome.OK)) + bytes(100)
        text = Checkpoint("log.example/1", 1, leaf_hash(leaf)).marshal()
        receipt = format_receipt(0, b"", leaf, salt, sign_note(text, [self.signer]))
        return reports.attested(report, event, receipt)


def test_a_report_verifies_with_the_key_of_the_log() -> None:
    log = Log()
    written = json.dumps(log.vouch(made()), indent=2)
    found = reports.read(written.encode())
    assert reports.verify(found, log.vkeys).index == 0
    assert found["rows"][0]["rule"] == "proposed"
    assert found["counts"] == {"met": 1, "failed": 1, "not-testable": 0}


@pytest.mark.parametrize("place", ["state", "evidence", "counts", "added", "statement"])
def test_a_changed_report_does_not(place: str) -> None:
    log = Log()
    report = log.vouch(made())
    if place == "state":
        report["rows"][1]["state"] = "met"
    elif place == "evidence":
        report["rows"][0]["evidence"].append("more")
    elif place == "counts":
        report["counts"]["failed"] = 0
    elif place == "added":
        report["approved"] = "by the auditor"
    else:
        report["statement"] = "certified"
    with pytest.raises(reports.ReportError, match="does not vouch"):
        reports.verify(report, log.vkeys)


def test_another_log_or_another_kind_of_statement_is_no_attestation() -> None:
    log = Log()
    with pytest.raises(reports.ReportError, match="does not vouch"):
        reports.verify(log.vouch(made()), Log().vkeys)
    with pytest.raises(reports.ReportError, match="does not vouch"):
        reports.verify(log.vouch(made(), kind="other"), log.vkeys)
    with pytest.raises(reports.ReportError, match="nobody vouches"):
        reports.verify(made(), log.vkeys)
    broken = log.vouch(made())
    broken["attestation"]["receipt"] = base64.b64encode(b"no proof").decode()
    with pytest.raises(reports.ReportError, match="does not vouch"):
        reports.verify(broken, log.vkeys)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{}", b'{"format": "sealward-safeguards-check/1"}',
        b'{"format": "sealward-safeguards-check/1", "rows": [{"id": "AC-01", "state": "fine"}]}',
        b'{"format": "sealward-safeguards-check/1", "rows": [], "rows": []}',
        b'{"format": "sealward-safeguards-check/1", "rows": [], "x": 1.5}',
    ],
)  # fmt: skip
def test_what_is_no_report(text: bytes) -> None:
    with pytest.raises(reports.ReportError, match=r"no report|cannot be read"):
        reports.read(text)


def test_what_changed_since_the_last_time() -> None:
    before = reports.earlier(made(), "00")
    assert before.states == {"AC-01": "met", "AC-02": "failed"}
    assert made(last=before)["changes"] == []
    other = reports.Report("2026-01-01", {"AC-01": "failed"}, "00")
    assert made(last=other)["changes"] == [
        {"id": "AC-01", "before": "failed", "after": "met"},
        {"id": "AC-02", "before": "none", "after": "failed"},
    ]
