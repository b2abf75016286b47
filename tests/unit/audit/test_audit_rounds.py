"""Rounds over real logs and real decisions of witnesses: quorums, outages, forks, logs that end."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.tlog.note import parse_note
from sealward.tlog.policy import Policy, open_cosigned
from services.audit.cosigning.builtin import BuiltinWitness
from services.audit.cosigning.introducing import Introducer
from services.audit.cosigning.policy import Witnesses
from services.audit.cosigning.rounds import Rounds
from services.audit.cosigning.watched import Newest, WatchedLog
from services.audit.logkeys import DAY, expire, rotate
from services.audit.shard import Hooks, LiveShard, PastShard
from tests.support.audit_shards import Logs
from tests.support.audit_suite import entry_bytes
from tests.support.inference_suite import until
from tests.support.witnesses import LocalWitness


@dataclass
class Fixture:
    """Logs, witnesses, and what came of the rounds."""

    folder: Path
    quorum: str = "built-in"
    outside_names: tuple[str, ...] = ()
    forks: list[tuple[str, int, str]] = field(default_factory=list)
    newest: list[Newest] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builtin = LocalWitness(self.folder / "witness")
        self.outside = [
            LocalWitness(self.folder / name, name, post_quantum=False)
            for name in self.outside_names
        ]
        self.introducer = Introducer(cast("BuiltinWitness", self.builtin))
        self.logs: Logs | None = None

    def open(self, **options: Any) -> Logs:
        self.logs = Logs(
            self.folder / "audit",
            tenants=("default",),
            hooks=Hooks(check=self.introducer.check),
            **options,
        )
        self.introducer.begin(self.logs.shards)
        self.rounds = self.make_rounds()
        return self.logs

    def make_rounds(self) -> Rounds:
        assert self.logs is not None
        everyone = [self.builtin, *self.outside]
        lines = [f"witness {w.name} {w.verifiers[0].vkey} https://{w.name}/" for w in everyone]
        lines.append(f"group all all {' '.join(w.name for w in everyone)}")
        policy = Policy.parse("\n".join([*lines, f"quorum {self.quorum}", ""]).encode())
        witnesses = Witnesses(policy, cast("Any", tuple(self.outside)), "built-in", b"")
        return Rounds(
            self.logs.shards,
            cast("BuiltinWitness", self.builtin),
            witnesses,
            self.introducer,
            get_logger("audit", io.StringIO()),
            outside_seconds=0.1,
            on_cosigned=self._cosigned,
            on_failure=self.failures.append,
            on_fork=lambda origin, size, who: self.forks.append((origin, size, who)),
            builtin_seconds=0.01,
        )

    def _cosigned(self, log: WatchedLog, newest: Newest) -> None:
        self.newest.append(newest)
        if isinstance(log.shard, LiveShard | PastShard):
            log.shard.cosigned = (newest.size, newest.note)

    @property
    def current(self) -> LiveShard:
        assert self.logs is not None
        return self.logs.shards.current()

    def grow(self, count: int = 1) -> int:
        """Append entries and wait until they are published."""
        assert self.logs is not None
        self.logs.append(*(entry_bytes() for _ in range(count)))
        size = self.current.log.head[0]
        until(lambda: self.current.publisher.published[0] == size)
        return size

    def round(self, *, outside: bool = True) -> None:
        for record in self.rounds.records:
            record.next_try = 0.0
        self.rounds._builtin_round()
        if outside and self.outside:
            self.rounds._outside_round()

    def close(self) -> None:
        if self.logs is not None:
            self.rounds.stop(1)
            self.logs.close()
            self.logs = None


Make = Callable[..., Fixture]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Fixture] = []

    def start(**options: Any) -> Fixture:
        made.append(Fixture(tmp_path, **options))
        made[-1].open()
        return made[-1]

    yield start
    for fixture in made:
        fixture.close()
        for witness in (fixture.builtin, *fixture.outside):
            witness.close()


def test_the_built_in_witness_alone(make: Make) -> None:
    fixture = make()
    size = fixture.grow(5)
    fixture.round()
    assert fixture.current.cosigned[0] == size
    assert fixture.rounds.waiting == 0
    (log,) = fixture.rounds.logs()
    opened = open_cosigned(fixture.current.cosigned[1], log._policy, log.verifiers)
    assert opened.checkpoint.size == size
    # It has no more to ask for.
    asked = len(fixture.builtin.asked)
    fixture.round()
    assert len(fixture.builtin.asked) == asked


def test_an_hour_later_a_log_at_rest_is_cosigned_anew(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = make()
    fixture.grow()
    fixture.round()
    from services.audit.cosigning import rounds

    monkeypatch.setattr(rounds, "REFRESH_SECONDS", 0.0)
    asked = len(fixture.builtin.asked)
    fixture.round()
    assert len(fixture.builtin.asked) == asked + 1
    assert len(fixture.newest) == 2


def test_a_quorum_is_of_one_checkpoint(make: Make) -> None:
    fixture = make(quorum="all", outside_names=("one", "two"))
    for witness in fixture.outside:
        witness.add_log(fixture.current.vkeys[0], b"")
    first = fixture.grow(3)
    fixture.round(outside=False)
    assert fixture.current.cosigned == (0, b"")
    assert fixture.rounds.waiting >= 0
    # The log grows on between the two rounds; the others get what the built-in one has cosigned.
    fixture.grow(2)
    fixture.rounds._outside_round()
    assert fixture.current.cosigned[0] == first
    names = {
        line.name.rsplit("/", 1)[-1] for line in parse_note(fixture.current.cosigned[1]).signatures
    }
    assert {"built-in", "one", "two"} <= names
    fixture.round()
    assert fixture.current.cosigned[0] == fixture.current.log.head[0]


def test_a_witness_that_is_away_is_left_alone_for_longer_and_longer(make: Make) -> None:
    fixture = make(quorum="all", outside_names=("one",))
    fixture.outside[0].down = True
    delays = []
    import time

    for _ in range(4):
        fixture.grow()
        fixture.round()
        record = fixture.rounds.records[1]
        assert (record.state, fixture.current.cosigned) == ("away", (0, b""))
        delays.append(record.next_try - time.monotonic())
    assert delays[-1] > delays[0]
    assert fixture.failures == ["one"] * 4
    asked = len(fixture.outside[0].asked)
    fixture.rounds._outside_round()
    assert len(fixture.outside[0].asked) == asked
    # It is back.
    fixture.outside[0].down = False
    fixture.outside[0].add_log(fixture.current.vkeys[0], b"")
    fixture.round()
    assert fixture.current.cosigned[0] == fixture.current.log.head[0]
    assert (record.state, record.failures) == ("ok", 0)


def test_a_witness_that_is_away_takes_nothing_from_a_quorum_without_it(make: Make) -> None:
    fixture = make(quorum="built-in", outside_names=("one",))
    fixture.outside[0].down = True
    size = fixture.grow()
    fixture.round()
    assert fixture.current.cosigned[0] == size


def test_with_the_built_in_one_away_the_others_go_on(make: Make) -> None:
    fixture = make(quorum="one", outside_names=("one",))
    fixture.outside[0].add_log(fixture.current.vkeys[0], b"")
    fixture.builtin.down = True
    size = fixture.grow()
    fixture.round()
    assert fixture.current.cosigned[0] == size


def test_little_is_kept_while_a_quorum_does_not_come(make: Make) -> None:
    fixture = make(quorum="all", outside_names=("one",))
    fixture.outside[0].down = True
    for _ in range(8):
        fixture.grow()
        fixture.round()
    (log,) = fixture.rounds.logs()
    assert len(log._candidates) <= 3


def test_an_outside_witness_that_does_not_know_the_log_shows(make: Make) -> None:
    fixture = make(quorum="all", outside_names=("one",))
    fixture.grow()
    fixture.round()
    assert fixture.rounds.records[1].state == "unknown-log"
    assert not fixture.forks


# --- forks ---------------------------------------------------------------------------------------


def rolled_back(fixture: Fixture) -> None:
    """Set the log back to an old copy, and start without looking at the built-in witness."""
    fixture.grow(3)
    fixture.round()
    fixture.close()
    shutil.copytree(fixture.folder / "audit", fixture.folder / "old")
    fixture.open()
    fixture.grow(4)
    fixture.round()
    fixture.close()
    shutil.rmtree(fixture.folder / "audit")
    shutil.copytree(fixture.folder / "old", fixture.folder / "audit")


def test_a_store_that_was_rolled_back_is_found_at_the_start(make: Make) -> None:
    fixture = make()
    rolled_back(fixture)
    with pytest.raises(StartupError, match=r"has 3 entries .* the witness has cosigned 7"):
        fixture.open()


def test_a_store_that_was_rolled_back_is_found_while_it_runs(make: Make) -> None:
    fixture = make()
    rolled_back(fixture)
    fixture.builtin.down = True
    unchecked = Logs(fixture.folder / "audit", tenants=("default",))
    fixture.logs, fixture.rounds = unchecked, fixture.rounds
    fixture.builtin.down = False
    fixture.rounds = fixture.make_rounds()
    fixture.grow()
    fixture.round()
    assert fixture.forks == [(fixture.current.origin, 7, "built-in")]
    # Once is enough.
    fixture.round()
    assert len(fixture.forks) == 1


def outside_knows_more(make: Make, **options: Any) -> Fixture:
    """A machine that was set back as a whole: only witnesses elsewhere know what was there."""
    fixture = make(outside_names=("one", "two"), **options)
    for witness in fixture.outside:
        witness.add_log(fixture.current.vkeys[0], b"")
    rolled_back(fixture)
    shutil.rmtree(fixture.folder / "witness")
    fixture.builtin.close()
    fixture.builtin = LocalWitness(fixture.folder / "witness")
    fixture.introducer = Introducer(cast("BuiltinWitness", fixture.builtin))
    fixture.open()
    return fixture


def test_a_proof_from_one_witness_elsewhere_is_enough(make: Make) -> None:
    fixture = outside_knows_more(make, quorum="built-in")
    fixture.outside[1].down = True
    fixture.grow()
    fixture.round()
    assert fixture.forks == [(fixture.current.origin, 7, "one")]


def test_a_claim_without_proof_counts_as_much_as_the_quorum_needs_it(make: Make) -> None:
    """A witness elsewhere may be wrong: alone it does not stop a hospital."""
    fixture = outside_knows_more(make, quorum="built-in")
    for witness in fixture.outside:
        witness.tells = False
    size = fixture.grow()
    fixture.round()
    assert not fixture.forks
    assert [record.state for record in fixture.rounds.records] == ["ok", "conflict", "conflict"]
    assert fixture.current.cosigned[0] == size


def test_a_claim_of_those_without_whom_there_is_no_quorum_stops_the_service(make: Make) -> None:
    fixture = outside_knows_more(make, quorum="all")
    fixture.outside[0].down = True
    fixture.outside[1].tells = False
    fixture.grow()
    fixture.round()
    assert fixture.forks == [(fixture.current.origin, 7, "two")]


def test_a_claim_that_was_withdrawn_counts_no_more(make: Make) -> None:
    from services.audit.cosigning.asking import Answer

    fixture = make(quorum="one", outside_names=("one", "two"))
    for witness in fixture.outside:
        witness.add_log(fixture.current.vkeys[0], b"")
    fixture.grow()
    fixture.outside[1].answers = [Answer(409, b"99\n")]
    fixture.round()
    assert fixture.rounds.records[2].claims
    fixture.grow()
    fixture.round()
    assert not fixture.rounds.records[2].claims
    assert not fixture.forks


# --- starts, keys, logs that end -----------------------------------------------------------------


def test_what_was_cosigned_before_a_start_is_taken_up(make: Make) -> None:
    fixture = make()
    size = fixture.grow(4)
    fixture.round()
    fixture.current.publisher.cosigned(*fixture.current.cosigned)
    path = fixture.folder / "audit" / "log" / "checkpoint.cosigned"
    until(path.exists)
    fixture.close()
    fixture.open()
    fixture.builtin.down = True
    fixture.rounds.logs()
    assert fixture.current.cosigned[0] == size


def test_what_somebody_put_there_is_not(make: Make) -> None:
    fixture = make()
    fixture.grow(4)
    fixture.round()
    fixture.close()
    note = fixture.newest[-1].note
    path = fixture.folder / "audit" / "log" / "checkpoint.cosigned"
    path.write_bytes(note[:-3] + b"x\n")
    fixture.open()
    fixture.rounds.logs()
    assert fixture.current.cosigned == (0, b"")


def test_the_log_goes_on_under_its_new_key(make: Make) -> None:
    fixture = make()
    assert fixture.logs is not None
    fixture.grow()
    fixture.round()
    rotate(fixture.current, fixture.logs.ring, fixture.logs.clock.now + DAY)
    fixture.grow()
    fixture.round()
    assert fixture.current.cosigned[0] == fixture.current.log.head[0]
    # The old key signs no more: the witness learns the new one from the log.
    assert expire(fixture.current, fixture.logs.clock.now + 2 * DAY)
    fixture.grow()
    # The note is of the new key alone.
    fixture.round()
    assert fixture.current.cosigned[0] == fixture.current.log.head[0]
    assert len(fixture.builtin.known()[fixture.current.origin].vkeys) == 2
    assert fixture.builtin.records.types == ["witness.log", "witness.key"]
    assert not fixture.failures


def test_the_end_of_a_log_is_cosigned_and_the_next_one_is_vouched_for(make: Make) -> None:
    fixture = make()
    assert fixture.logs is not None
    fixture.grow(3)
    fixture.round()
    before = fixture.current.origin
    fixture.logs.rollover.turn("default")
    after = fixture.grow()
    fixture.round()
    (past,) = fixture.logs.shards.of("default").past
    assert past.cosigned[0] == past.checkpoint.size
    assert fixture.current.cosigned[0] == after
    assert fixture.builtin.known()[before].successor == fixture.current.origin
    assert fixture.builtin.records.types == ["witness.log", "witness.log"]
    assert not fixture.failures
    # An ended log costs nothing any more.
    assert [log.origin for log in fixture.rounds.logs()] == [fixture.current.origin]


def test_turns_while_the_witness_was_away(make: Make) -> None:
    fixture = make()
    assert fixture.logs is not None
    fixture.grow(3)
    fixture.round()
    first = fixture.current.origin
    for _ in range(2):
        # A turn opens the next log, which asks: it is there for that moment alone.
        fixture.logs.rollover.turn("default")
        fixture.grow()
    fixture.round()
    known = fixture.builtin.known()
    assert [log.successor != "" for log in known.values()] == [True, True, False]
    assert known[first].successor
    assert all(past.cosigned[0] for past in fixture.logs.shards.of("default").past)


def test_a_log_that_ended_before_there_was_a_witness_stays_as_it_is(make: Make) -> None:
    fixture = make()
    assert fixture.logs is not None
    fixture.grow(3)
    fixture.logs.rollover.turn("default")
    fixture.grow()
    # A witness that is younger than the first log.
    fixture.close()
    shutil.rmtree(fixture.folder / "witness")
    fixture.builtin.close()
    fixture.builtin = LocalWitness(fixture.folder / "witness")
    fixture.introducer = Introducer(cast("BuiltinWitness", fixture.builtin))
    fixture.open()
    fixture.grow()
    fixture.round()
    fixture.round()
    assert fixture.current.cosigned[0] == fixture.current.log.head[0]
    (past,) = fixture.logs.shards.of("default").past
    assert past.cosigned == (0, b"")
    assert not fixture.failures
    assert fixture.rounds.waiting == 0


def test_an_ended_log_that_was_exchanged_ends_the_start(make: Make) -> None:
    fixture = make()
    assert fixture.logs is not None
    fixture.grow(3)
    fixture.round()
    fixture.close()
    shutil.copytree(fixture.folder / "audit", fixture.folder / "old")
    fixture.open()
    assert fixture.logs is not None
    fixture.grow(5)
    fixture.logs.rollover.turn("default")
    fixture.grow()
    fixture.round()
    origin = fixture.current.origin
    fixture.close()
    # The old copy is turned as well, elsewhere: another end, and another next log.
    shutil.move(fixture.folder / "audit", fixture.folder / "new")
    shutil.copytree(fixture.folder / "old", fixture.folder / "audit")
    other = Logs(fixture.folder / "audit", tenants=("default",))
    other.rollover.turn("default")
    assert other.shards.current().origin == origin
    other.close()
    with pytest.raises(StartupError, match=r"the ended log .* is not the one|other keys"):
        fixture.open()


def test_a_start_waits_for_the_witness(make: Make) -> None:
    fixture = make()
    fixture.close()
    fixture.builtin.down = True
    with pytest.raises(SealwardError) as caught:
        fixture.open()
    assert (caught.value.reason, caught.value.retry_after) == (Reason.KEYS_UNAVAILABLE, 1.0)


def test_the_threads_keep_up_and_end(make: Make) -> None:
    fixture = make(quorum="all", outside_names=("one",))
    fixture.outside[0].add_log(fixture.current.vkeys[0], b"")
    fixture.rounds.start()
    for _ in range(3):
        size = fixture.grow(2)
        fixture.rounds.changed()
        until(lambda size=size: fixture.current.cosigned[0] == size)  # type: ignore[misc]
    fixture.grow()
    fixture.rounds.finish(10)
    assert fixture.builtin.known()[fixture.current.origin].checkpoint.split(b"\n")[1] == (
        b"%d" % fixture.current.log.head[0]
    )
    fixture.rounds.stop(10)
    assert all(not thread.is_alive() for thread in fixture.rounds._threads)
