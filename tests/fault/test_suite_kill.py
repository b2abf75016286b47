"""kill -9 under load: what was answered is in the log, once, and the log verifies."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Self

import pytest

from sealward.cli.errors import CliError
from sealward.cli.infer import Answer, Caller
from tests.support.suites import TRANSIENT, RunningSuite, request, until

CALLERS = 3


@dataclass
class Load:
    """Calls without pause from several threads; keeps every answer and every kind of refusal."""

    suite: RunningSuite
    user: str
    answers: list[Answer] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    surprises: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        message = request(row=number).SerializeToString()
        try:
            with Caller(self.suite.suite, self.user, consistency_seconds=3600) as caller:
                while not self._stop.is_set():
                    self._call(caller, message)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.surprises.append(error)

    def _call(self, caller: Caller, message: bytes) -> None:
        try:
            self.answers.append(caller.ask(message, timeout=10))
        except CliError as error:
            if error.details.get("status") not in TRANSIENT:
                raise
            self.refusals.append(str(error.details.get("reason")))
            self._stop.wait(0.02)

    def more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted or bool(self.surprises), "more answers")
        assert not self.surprises, self.surprises


@pytest.mark.timeout(400)
def test_every_answer_survives_the_death_of_each_service(suite: RunningSuite) -> None:
    user = suite.user("ada")
    with Load(suite, user) as load:
        load.more(10)
        for name in ("audit", "gateway", "inference", "keys", "valkey"):
            old = suite.kill(name)
            suite.restarted(name, old)
            load.more(10)
    assert not load.surprises, load.surprises
    suite.assert_each_once(load.answers)
    # The log continues every history that a receipt has shown.
    notes = {answer.proof.checkpoint.size: answer.proof.checkpoint.note for answer in load.answers}
    report = suite.verify(*notes.values())
    assert report.size >= max(notes)
    known = {event for answer in load.answers if (event := answer.proof.event_id)}
    assert len(known) == len(load.answers)
