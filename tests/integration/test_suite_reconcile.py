"""Two parties compare: the operator's log, and the list that the caller kept of its own calls."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from sealward.cli.errors import CliError
from sealward.client import AsyncClient, Client, DeniedError
from sealward.kit.calllist import Ended, Line, Sent, read_line, write_line
from sealward.kit.recorder import new_event_id
from tests.support.suites import RunningSuite, heldout, rest_json, running, until

MODEL = "breast-cancer"
PREDICTION = "inference.predict"
ROWS = {"measurements": np.array(heldout(MODEL)[:1], np.float32)}
PATIENT = "MRN-reconcile-5520"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    """A suite of its own: nobody else's calls are in its log."""
    root = tmp_path_factory.mktemp("reconcile") / "data"
    with running(root, {"SEALWARD_AUDIT_GAP_SECONDS": "1"}) as started:
        yield started


def reconcile(suite: RunningSuite, *arguments: str, code: int = 0) -> Any:
    return suite.sealward("audit", "reconcile", "--settle", "0", *arguments, code=code)


def folder_of(suite: RunningSuite, name: str) -> Path:
    return suite.suite.clients / name


def listed(folder: Path) -> list[Line]:
    return [read_line(line) for line in (folder / "calls.ndjson").read_bytes().splitlines()]


def copied(lines: list[Line], target: Path) -> str:
    target.write_bytes(b"".join(map(write_line, lines)))
    return str(target)


def counts(part: dict[str, Any]) -> dict[str, int]:
    return {kind: found["count"] for kind, found in part.items()}


def everybody(suite: RunningSuite) -> list[str]:
    """The lists of all clients that have made calls."""
    folders = sorted({file.parent for file in suite.suite.clients.glob("*/calls.ndjson")})
    return [word for folder in folders for word in ("--against", str(folder))]


def some_calls(suite: RunningSuite, name: str, tmp_path: Path) -> Path:
    """Calls of one user through the library, the asynchronous one and the command line."""
    folder = folder_of(suite, suite.user(name))
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    with Client.from_profile(folder) as client:
        for _ in range(3):
            client.infer(MODEL, ROWS, patient=PATIENT)
        with pytest.raises(DeniedError):
            client.infer(MODEL, ROWS, purpose="HRESCH")

    async def run() -> None:
        async with AsyncClient.from_profile(folder, consistency_interval=60) as client:
            await asyncio.gather(*(client.infer(MODEL, ROWS) for _ in range(4)))

    asyncio.run(run())
    infer = ("infer", MODEL, "--input", str(file), "--user", name)
    suite.sealward(*infer)
    suite.sealward(*infer, "--purpose", "HRESCH", code=1)
    return folder


def test_both_sides_have_the_same(alone: RunningSuite, tmp_path: Path) -> None:
    folder = some_calls(alone, "ada", tmp_path)
    found = reconcile(alone, "--against", str(folder))
    assert found["complete"], found["missing"]
    assert counts(found["notes"]) == {}
    (list_,) = found["against"]
    assert (list_["form"], list_["unit"], list_["entries"], list_["malformed"]) == (
        "calls", "line", 20, 0
    )  # fmt: skip
    assert {run["producer"] for run in found["runs"]} >= {"gateway", "inference", "keys"}
    assert found["events"] == sum(log["entries"] for log in found["logs"])
    # The client knew its session, and its list says what the log says.
    ends = [line for line in listed(folder) if isinstance(line, Ended)]
    assert [end.seq for end in sorted(ends, key=lambda e: e.seq)] == list(range(1, 11))
    (session,) = {end.session for end in ends}
    event = alone.event(str(UUID(bytes=ends[0].event_id)))
    assert event["session"] == session
    assert event["span"]["attributes"]["sealward.caller.seq"] == ends[0].seq
    # The reading is itself in the log.
    recorded = alone.event(found["event_id"])
    assert (recorded["type"], recorded["actor"]) == ("audit.reconcile", "local")
    assert recorded["span"]["attributes"]["sealward.target"] == "against"
    for path in folder.glob("calls*"):
        assert PATIENT not in path.read_text()
        assert alone.token("ada") not in path.read_text()


def test_what_one_side_lacks_is_named(alone: RunningSuite, tmp_path: Path) -> None:
    folder = some_calls(alone, "bea", tmp_path)
    lines = listed(folder)
    ends = {line.seq: line for line in lines if isinstance(line, Ended)}
    foreign = new_event_id()
    kept = [line for line in lines if getattr(line, "seq", 0) != 3]
    one = ends[1]
    kept.append(Sent(one.session, 77, one.at))
    kept.append(Ended(one.session, 77, one.at, "ok", foreign, one.log, 5))
    found = reconcile(alone, "--against", copied(kept, tmp_path / "theirs.ndjson"), code=1)
    assert counts(found["missing"]) == {"only-theirs": 1, "only-ours": 1}
    (theirs,) = found["missing"]["only-theirs"]["items"]
    assert (theirs["seq"], theirs["event_id"]) == (77, str(UUID(bytes=foreign)))
    assert theirs["line"] == len(kept)
    (ours,) = found["missing"]["only-ours"]["items"]
    assert (ours["seq"], ours["event_id"]) == (3, str(UUID(bytes=ends[3].event_id)))
    # A list of somebody who was told another outcome.
    changed = [
        Ended(x.session, x.seq, x.at, "denied", x.event_id, x.log, x.log_index)
        if isinstance(x, Ended) and x.seq == 2 else x for x in lines
    ]  # fmt: skip
    found = reconcile(alone, "--against", copied(changed, tmp_path / "told.ndjson"), code=1)
    assert counts(found["missing"]) == {"differs": 1}
    (difference,) = found["missing"]["differs"]["items"]
    assert (difference["what"], difference["theirs"], difference["ours"]) == (
        "outcome", "denied", "ok"
    )  # fmt: skip


def test_lists_of_other_kinds(alone: RunningSuite, tmp_path: Path) -> None:
    some_calls(alone, "cleo", tmp_path)
    query = ("--user", "cleo", "--type", "inference.predict")
    files = {}
    for form, name in (("fhir", "events.ndjson"), ("csv", "events.csv")):
        target = tmp_path / name
        alone.sealward("audit", "export", "--format", form, "--output", str(target), *query)
        files[form] = target
        found = reconcile(alone, "--user", "cleo", "--against", str(target))
        assert found["complete"], found["missing"]
        assert found["against"][0]["form"] == form
    events = [json.loads(line) for line in files["fhir"].read_text().splitlines()]
    answered = [event["id"] for event in events if event["outcome"] == "0"]
    # An engine that stored each result with the event of its prediction.
    hl7 = "\r".join(
        f"MSH|^~\\&|LAB|H|RIS|H|2026||ORU^R01|{n}|P|2.5.1\rPID|1||4711\rOBX|1|NM|p||0.9||||||F|||||||{one}"
        for n, one in enumerate(answered[1:])
    )
    theirs = tmp_path / "results.hl7"
    theirs.write_text(hl7)
    found = reconcile(alone, "--user", "cleo", "--against", str(theirs), code=1)
    items = found["missing"]["only-ours"]["items"]
    # Refused calls have no result: the one that the engine lacks, and these.
    missing = {item["event_id"] for item in items}
    assert missing == {e["id"] for e in events} - set(answered[1:])
    plain = tmp_path / "ids.txt"
    plain.write_text("\n".join([*answered, "not an id"]))
    session = alone.event(answered[0])["session"]
    found = reconcile(alone, "--session", session, "--against", str(plain), code=1)
    assert counts(found["missing"]) == {"malformed": 1}
    assert found["missing"]["malformed"]["items"] == [
        {"file": str(plain), "line": len(answered) + 1}
    ]


def test_a_reading_of_every_entry_says_the_same(alone: RunningSuite) -> None:
    found = reconcile(alone, "--complete")
    assert found["complete"], found["missing"]
    assert found["index_differences"] == 0
    assert [len(log["root"]) for log in found["logs"]] == [64]


def test_the_run_of_a_traced_call_is_in_its_trace(alone: RunningSuite) -> None:
    # With a client that keeps no list: in a session of somebody who does, it would be a stranger's.
    name = alone.user("tracy")
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    metadata = (
        ("authorization", f"Bearer {alone.token(name)}"),
        ("traceparent", f"00-{trace}-{caller}-01"),
    )
    _, call = alone.raw(name, metadata)
    answered = dict(call.trailing_metadata())["sealward-event-id"]

    def spans() -> list[Any]:
        return alone.events(trace_id=bytes.fromhex(trace))

    until(lambda: len(spans()) == 2, "the span of the run has come")
    run, root = sorted(spans(), key=lambda event: event.type != "inference.run")
    assert (run.type, run.producer, root.type) == ("inference.run", "inference", PREDICTION)
    assert str(UUID(bytes=root.event_id)) == answered
    opened = alone.event(str(UUID(bytes=run.event_id)))["span"]
    parent = alone.event(answered)["span"]
    assert (parent["parent_span_id"], opened["parent_span_id"]) == (caller, parent["span_id"])
    assert opened["attributes"]["sealward.rows"] == 1
    found = reconcile(alone)
    assert found["complete"], found["missing"]


def test_spools_are_asked_what_they_hold(alone: RunningSuite) -> None:
    empty = {"records": 0, "oldest": None}
    until(lambda: reconcile(alone)["spools"] == {"inference": empty, "keys": empty}, "all is sent")
    with alone.stopped("inference"):
        assert reconcile(alone)["spools"] == {"inference": None, "keys": empty}


def test_what_cannot_be_compared_is_said(alone: RunningSuite, tmp_path: Path) -> None:
    error = reconcile(alone, "--against", str(tmp_path / "nowhere"), code=2)["error"]
    assert "nowhere" in error["message"]
    odd = tmp_path / "odd.txt"
    odd.write_text("Miller, Ann, 4711\n")
    error = reconcile(alone, "--against", str(odd), code=2)["error"]
    assert "Miller" not in json.dumps(error)
    assert "docs/reconcile.md" in error["advice"]
    assert reconcile(alone, "--user", "ada", code=2)["error"]
    assert reconcile(alone, "--since", "1h", "--until", "2h", code=2)["error"]
    assert reconcile(alone, "--against", str(tmp_path), code=2)["error"]
    arguments = ("--against", str(odd), "--hl7-fields", "OBX18")
    assert "OBX-18" in reconcile(alone, *arguments, code=2)["error"]["message"]


def test_a_call_that_died_with_its_gateway_shows(alone: RunningSuite, tmp_path: Path) -> None:
    folder = folder_of(alone, alone.user("dora"))
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            alone.ask("dora", timeout=30)
        except CliError as error:
            failed.append(error)

    alone.ask("dora")
    with alone.stopped("inference"):
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: len([x for x in listed(folder) if isinstance(x, Sent)]) == 2, "it is sent")
        # In the gateway, or on its way there: it has no answer either way.
        old = alone.kill("gateway")
        thread.join()
    assert len(failed) == 1
    alone.restarted("gateway", old)
    alone.answers_again("dora")
    alone.ask("dora")
    # The log shows the hole by itself ...
    session = listed(folder)[1].session  # type: ignore[union-attr]
    found = reconcile(alone, "--session", session, code=1)
    assert list(found["missing"]) == ["call"]
    hole = found["missing"]["call"]["items"][0]
    assert (hole["session"], hole["first"]) == (session, 2)
    # ... and with the caller's list it is a call that was never answered, on both sides.
    found = reconcile(alone, "--session", session, "--against", str(folder))
    assert found["complete"], found["missing"]
    unanswered = found["notes"]["unanswered"]["items"]
    assert 2 in [item["seq"] for item in unanswered]
    # Had it been answered, the log would lack it.
    lines = listed(folder)
    copy = [x for x in lines if not (isinstance(x, Ended) and x.seq == 2)]
    copy.append(Ended(session, 2, lines[-1].at, "ok", new_event_id(), "", None))
    theirs = copied(copy, tmp_path / "answered.ndjson")
    found = reconcile(alone, "--session", session, "--against", theirs, code=1)
    assert counts(found["missing"]) == {"only-theirs": 1}


def test_an_event_that_the_log_did_not_take_leaves_a_hole(alone: RunningSuite) -> None:
    name = alone.user("emma")
    alone.ask(name)
    # The lists of all callers together explain every hole in their own numbers.
    before = reconcile(alone, *everybody(alone))
    assert before["complete"], before["missing"]
    with alone.stopped("audit"):
        with pytest.raises(CliError):
            alone.ask(name, timeout=8)
        old = alone.kill("audit")
    alone.restarted("audit", old)
    alone.answers_again(name)

    def hole() -> Any:
        found = alone.sealward("audit", "reconcile", "--settle", "0", code=1)
        return [
            item for item in found["missing"]["number"]["items"]
            if item["producer"] == "gateway" and item.get("recorded")
        ]  # fmt: skip

    until(lambda: bool(hole()), "the gap is recorded")
    (gap, *_) = hole()
    event = alone.event(gap["recorded"][0])
    assert event["type"] == "audit.gap"
    assert f"/{gap['first']}-{gap['last']}" in event["span"]["attributes"]["sealward.target"]
    # Nothing was answered that is not there: the lists explain the callers' side of it.
    found = reconcile(alone, *everybody(alone), code=1)
    assert list(found["missing"]) == ["number"]


def test_people_can_read_it(alone: RunningSuite, tmp_path: Path) -> None:
    import subprocess
    import sys

    copy = tmp_path / "client"
    shutil.copytree(folder_of(alone, "bea"), copy)
    done = subprocess.run(
        [
            sys.executable, "-m", "sealward.cli.main", "audit", "reconcile", "--against",
            str(copy), "--session", "nobody", "--dir", str(alone.suite.root),
        ],
        capture_output=True, text=True, check=False, env=alone.environ, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("complete: ")
    assert "outside: calls of the list outside" in done.stdout
