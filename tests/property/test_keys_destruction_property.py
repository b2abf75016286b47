"""Whatever people do in whatever order, a key goes only by two people, after the wait, unheld."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.keys import destruction as steps
from services.keys.destroying import Destroyer
from services.keys.destruction import Destruction, State, Subject
from services.keys.destructions import Destructions
from services.keys.rotation import Confirmations
from tests.support.destructions import (
    Clock,
    FakeGuard,
    Log,
    Person,
    PlainKeys,
    Records,
    a_statement,
)

WAIT = 100
PEOPLE = tuple(Person(name) for name in ("ann", "bob", "cid"))


class Machine(RuleBasedStateMachine):
    """One key, three people, a clock that is moved on, holds that come and go, crashes anywhere."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / "destructions"
        self.path.unlink(missing_ok=True)
        self.keys = PlainKeys()
        self.clock = Clock()
        self.guard = FakeGuard()
        self.asked: dict[str, str] = {}
        self.approved: dict[str, tuple[str, int]] = {}
        self.gone: set[str] = set()
        self.reopen()

    def reopen(self) -> None:
        self.kept = Destructions(self.path, self.keys)
        self.destroyer = Destroyer(
            self.kept, self.keys, None, Confirmations(), self.guard, Records(), Log(),
            clock=self.clock, changed=lambda: None,
        )  # fmt: skip

    @rule(who=st.sampled_from(PEOPLE), purpose=st.sampled_from(("session", "model")))
    def ask(self, who: Person, purpose: str) -> None:
        jws = who.sign(a_statement(purpose=purpose))
        found = steps.request(jws, who.peer, self.clock())
        open_ones = {f.subject.purpose for f in self.kept.all() if f.state in steps.OPEN}
        if purpose in open_ones:
            with pytest.raises(SealwardError) as caught:
                self.kept.add(found)
            assert caught.value.reason is Reason.ALREADY_EXISTS
            return
        self.kept.add(found)
        self.asked[found.subject.id] = who.name

    @precondition(lambda self: self.kept.all())
    @rule(who=st.sampled_from(PEOPLE), data=st.data())
    def approve(self, who: Person, data: Any) -> None:
        found = data.draw(st.sampled_from(self.kept.all()))
        jws = who.sign(steps.verify(found.jws).payload)
        try:
            after = steps.approve(found, jws, who.peer, self.clock(), WAIT)
        except SealwardError:
            lapsed = self.clock() > found.requested_at + steps.LAPSE_SECONDS
            same = self.asked[found.subject.id] == who.name
            assert found.state is not State.REQUESTED or same or lapsed
            return
        assert self.asked[found.subject.id] != who.name
        self.kept.put(found, after)
        self.approved[found.subject.id] = (who.name, self.clock())

    @precondition(lambda self: self.kept.all())
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        found = data.draw(st.sampled_from(self.kept.all()))
        try:
            self.kept.put(found, steps.cancel(found, "admin/local", self.clock()))
        except SealwardError:
            assert found.state in (State.EXECUTING, State.DONE, State.CANCELLED)
        else:
            assert found.subject.id not in self.gone

    @rule(seconds=st.integers(1, 80))
    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.guard.held = held

    @rule(calls=st.integers(0, 6))
    def tick_and_die(self, calls: int) -> None:
        """The provider fails after some calls; the process begins anew."""
        self.keys.fails_after = calls
        self.destroyer.tick()
        self.keys.fails_after = None
        self.reopen()

    @rule()
    def tick(self) -> None:
        before = {f.subject.id: f.state for f in self.kept.all()}
        self.destroyer.tick()
        for found in self.kept.all():
            if before[found.subject.id] is State.WAITING and self.guard.held:
                assert found.state is State.WAITING
            if before[found.subject.id] is State.EXECUTING:
                assert found.state is State.DONE

    @invariant()
    def only_by_the_rules(self) -> None:
        for found in self.kept.all():
            steps.check_kept(found)
            if found.state in (State.EXECUTING, State.DONE):
                self.gone.add(found.subject.id)
                name, when = self.approved[found.subject.id]
                assert self.asked[found.subject.id] != name
                assert self.clock() >= when + WAIT
            if found.state is State.DONE:
                assert self.keys.lowest[found.subject.purpose] > found.through
        destroyed = {f.subject.purpose for f in self.kept.all() if f.through}
        for purpose, lowest in self.keys.lowest.items():
            assert purpose in destroyed or lowest == 1


@pytest.mark.filterwarnings("ignore")
def test_the_state_machine(tmp_path: Path) -> None:
    Machine.folder = tmp_path
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(st.dictionaries(st.sampled_from(Destruction.__slots__), st.text(max_size=6), min_size=1))
@settings(max_examples=25, deadline=None)
def test_what_was_not_signed_is_not_believed(changes: dict[str, str]) -> None:
    ann, bob = PEOPLE[:2]
    jws = ann.sign(a_statement())
    found = steps.approve(
        steps.request(jws, ann.peer, 1), bob.sign(a_statement_of(jws)), bob.peer, 2, 3
    )
    steps.check_kept(found)
    told: dict[str, Any] = {
        n: v for n, v in changes.items() if n in ("requested_by", "approved_by")
    }
    subject = changes.get("subject")
    if subject is not None:
        told["subject"] = replace(found.subject, reason=subject or "another")
    changed = replace(found, **told)
    if changed != found:
        with pytest.raises(SealwardError):
            steps.check_kept(changed)


def a_statement_of(jws: bytes) -> bytes:
    payload: bytes = steps.verify(jws).payload
    assert isinstance(steps.read_subject(payload), Subject)
    return payload
