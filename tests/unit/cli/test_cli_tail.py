"""`audit tail --follow` leaves nothing out: neither in a burst, nor when the log turns."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from sealward.api.audit.v1.audit_pb2 import EventSummary
from sealward.cli.audit import events
from sealward.cli.errors import CliError, Exit
from sealward.cli.suite import Suite


class Logs:
    """Two logs as audit answers of them, the newest first, in pages."""

    def __init__(self) -> None:
        self.events: list[EventSummary] = []
        self.asked = 0

    def grow(self, origin: str, count: int) -> None:
        first = sum(event.origin == origin for event in self.events)
        self.events += [
            EventSummary(event_id=uuid.uuid4().bytes, origin=origin, log_index=first + n)
            for n in range(count)
        ]

    def query(self, _suite: Suite, **fields: Any) -> list[EventSummary]:
        self.asked += 1
        found = [
            event
            for event in reversed(self.events)
            if fields.get("origin", event.origin) == event.origin
            and event.log_index < fields.get("before_index", 1 << 60)
        ]
        return found[: fields["limit"]]


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    made = Logs()
    monkeypatch.setattr(events, "_query", made.query)
    return made


@pytest.mark.parametrize("expected", [1, 400])
def test_a_burst_is_read_to_what_was_shown(logs: Logs, expected: int) -> None:
    logs.grow("a", 1000)
    found = events._since(Suite(Path()), {"a": 599}, expected)
    assert [event.log_index for event in found] == list(range(999, 599, -1))


def test_what_followed_is_read_and_the_rest_of_what_ended(logs: Logs) -> None:
    logs.grow("a", 1000)
    logs.grow("b", 50)
    found = events._since(Suite(Path()), {"a": 299}, 50)
    assert [(e.origin, e.log_index) for e in found] == [
        *(("b", n) for n in range(49, -1, -1)),
        *(("a", n) for n in range(999, 299, -1)),
    ]
    assert events._since(Suite(Path()), {"a": 999, "b": 49}, 0) == []
    # Nothing was shown yet.
    assert len(events._since(Suite(Path()), {}, 900)) == 1050


def test_another_log_is_growth_however_short_it_is(tmp_path: Path) -> None:
    log = tmp_path / "audit/log"
    log.mkdir(parents=True)
    (tmp_path / "endpoints.json").write_text('{"audit": {"log": "audit/log"}}')
    (log / "checkpoint").write_text("host/default/2026-2\n3\nroot\n")
    suite = Suite(tmp_path)
    assert events._await_growth(suite, {"host/default/2026": 70_000}) == 4
    assert events._await_growth(suite, {"host/default/2026-2": 0}) == 3


def test_a_log_that_is_not_read_for_a_moment_ends_nothing(
    logs: Logs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logs.grow("a", 5)
    answers: list[Any] = [logs.query, CliError("turning", code=Exit.UNAVAILABLE), logs.query]
    grown = iter([5, 5])

    def query(suite: Suite, **fields: Any) -> list[EventSummary]:
        answer = answers.pop(0)
        if isinstance(answer, CliError):
            raise answer
        return logs.query(suite, **fields)

    def await_growth(*_: object) -> int:
        logs.grow("a", 3)
        try:
            return next(grown)
        except StopIteration:
            raise CliError("down", code=Exit.UNAVAILABLE) from None

    monkeypatch.setattr(events, "_query", query)
    monkeypatch.setattr(events, "_await_growth", await_growth)
    monkeypatch.setattr(Suite, "require_running", lambda _: None)
    monkeypatch.setattr(events, "_FOLLOW_SECONDS", 0)
    with pytest.raises(CliError, match="down"):
        events.tail(limit=2, follow=True, directory=tmp_path, as_json=True)
    shown = [json.loads(text)["log_index"] for text in capsys.readouterr().out.splitlines()]
    assert shown == [3, 4, *range(5, 11)]
