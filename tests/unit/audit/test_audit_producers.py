"""What never came is told once, and told again when it comes after all."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry

from sealward.kit import attributes as names
from sealward.kit.identity import parse_identity
from sealward.tlog.leaf import PREFIX_SIZE
from services.audit.committer import Committer, MeteredAppender
from services.audit.events import OwnEvents
from services.audit.gaps import GapKeeper
from services.audit.index import Row
from services.audit.metrics import AuditMetrics
from services.audit.producers import Gap, Producers
from tests.support.audit_suite import Suite
from tests.unit.audit.test_audit_reports import EMPTY

if TYPE_CHECKING:
    from services.audit.shards import Shards

AUDIT = parse_identity("spiffe://sealward.local/service/audit")

DAY = 24 * 3600.0


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """Producers behind one log."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.steady = True
        self.producers = Producers(self.clock, 60, lambda: self.steady)
        self.size = 0

    def hear(self, *numbers: int, instance: str = "aa", producer: str = "gateway") -> None:
        rows: list[Row | None] = [
            EMPTY._replace(producer=producer, instance=instance, producer_seq=n) for n in numbers
        ]
        self.producers.indexed("log", self.size, rows)
        self.size += len(rows)

    def later(self, seconds: float = 61) -> list[Gap]:
        self.clock.now += seconds
        return self.producers.due()


@pytest.fixture
def ears() -> Listener:
    return Listener()


def gap(first: int, last: int, *, closed: bool = False, instance: str = "aa") -> Gap:
    return Gap("gateway", instance, first, last, closed=closed)


def test_numbers_in_any_order_leave_no_gap(ears: Listener) -> None:
    numbers = list(range(1, 500))
    random.Random(7).shuffle(numbers)  # noqa: S311
    ears.hear(*numbers)
    assert ears.later() == []
    assert ears.producers.open() == []


def test_a_hole_is_told_when_its_time_is_up_and_once(ears: Listener) -> None:
    ears.hear(1, 2, 5, 9)
    assert ears.later(59) == []
    assert ears.producers.open() == [gap(3, 4), gap(6, 8)]
    assert ears.later(2) == [gap(3, 4), gap(6, 8)]
    assert ears.later() == []
    assert ears.producers.missing() == 5


def test_what_comes_in_time_is_no_gap(ears: Listener) -> None:
    ears.hear(1, 4)
    ears.later(30)
    ears.hear(3, 2)
    assert ears.later() == []


def test_what_comes_too_late_is_told_as_closed(ears: Listener) -> None:
    ears.hear(1, 6)
    assert ears.later() == [gap(2, 5)]
    ears.hear(3, 4)
    assert ears.later() == [gap(3, 4, closed=True)]
    assert ears.producers.missing() == 2
    ears.hear(5, 2)
    assert ears.later() == [gap(2, 2, closed=True), gap(5, 5, closed=True)]
    assert ears.producers.missing() == 0


def test_the_first_numbers_of_an_instance_count(ears: Listener) -> None:
    ears.hear(3)
    ears.hear(1, 2, instance="bb")
    assert ears.later() == [gap(1, 2)]


def test_repeated_numbers_and_events_without_are_nothing(ears: Listener) -> None:
    ears.hear(1, 2, 2, 1, 3)
    ears.producers.indexed("log", ears.size, [None, EMPTY, EMPTY._replace(producer_seq=77)])
    assert ears.later() == []


def test_rows_are_seen_once_and_in_order(ears: Listener) -> None:
    ears.hear(1, 2)
    ears.size = 0
    ears.hear(1, 2, 3)
    assert ears.producers.position("log") == 3
    ears.size = 9
    ears.hear(50)
    assert ears.producers.position("log") == 3
    assert ears.producers.open() == []


def test_the_state_outlives_a_restart(ears: Listener) -> None:
    ears.hear(1, 2, 5, 9)
    ears.later()
    ears.hear(12)
    again = Listener()
    again.clock.now = ears.clock.now
    again.producers.load(ears.producers.dump())
    again.size = ears.producers.position("log")
    assert again.size == 5
    assert again.later() == [gap(10, 11)]
    again.hear(3, 4)
    assert again.later() == [gap(3, 4, closed=True)]


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b'{"positions":[],"known":[]}', b"nonsense"])
def test_a_damaged_state_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Listener().producers.load(state)


def test_many_holes_are_joined_not_dropped(ears: Listener) -> None:
    ears.hear(*range(2, 5000, 2))
    told = ears.later()
    missing = {n for g in told for n in range(g.first, g.last + 1)}
    assert set(range(1, 4999, 2)) <= missing
    assert len(told) <= 1000


def test_a_clock_that_is_set_back_puts_no_gap_off(ears: Listener) -> None:
    ears.hear(1, 2, 5)
    assert ears.later(-365 * DAY) == []
    assert ears.later() == [gap(3, 4)]
    ears.hear(3, 4)
    assert ears.later() == [gap(3, 4, closed=True)]


def test_a_clock_that_is_set_forward_tells_early_and_forgets_nobody(ears: Listener) -> None:
    ears.hear(1, 2, 5)
    ears.hear(1, instance="bb")
    ears.steady = False
    assert ears.later(365 * DAY) == [gap(3, 4)]
    ears.hear(3, 4, 6)
    ears.hear(2, instance="bb")
    assert ears.later(-365 * DAY) == [gap(3, 4, closed=True)]
    assert ears.later() == []


def test_the_newest_of_a_producer_is_never_forgotten(ears: Listener) -> None:
    ears.hear(1, instance="old")
    ears.later(DAY)
    ears.hear(1, 2, 3)
    ears.hear(1, producer="keys", instance="kk")
    assert ears.later(90 * DAY) == []
    # One that was followed by another is forgotten; what is silent is not taken for new.
    assert b'"old"' not in ears.producers.dump()
    ears.hear(4)
    ears.hear(2, producer="keys", instance="kk")
    assert ears.later() == []


def test_a_new_instance_in_every_span_is_told_and_then_let_go(ears: Listener) -> None:
    for number in range(1000):
        ears.hear(3, instance=f"i{number}")
    ears.hear(1, 4, producer="keys", instance="kk")
    assert len(ears.later(59)) == 0
    assert b'"i0"' in ears.producers.dump()
    assert len(ears.later(2)) == 1001
    state = json.loads(ears.producers.dump())["known"]
    # The newest ones, and whoever else there is.
    assert [row[1] for row in state] == [*(f"i{n}" for n in range(744, 1000)), "kk"]


def test_a_flood_of_gaps_is_recorded_bit_by_bit(ears: Listener, logger: Any) -> None:
    for number in range(1000):
        ears.hear(2, instance=f"i{number}")
    ears.clock.now += 61
    told: list[Gap] = []
    keeper = GapKeeper(ears.producers, told.append, AuditMetrics(CollectorRegistry()), logger)
    keeper._shards = cast("Shards", object())
    keeper.tick()
    assert 0 < len(told) < 1000
    for _ in range(5):
        keeper.tick()
    assert len(told) == len({(g.instance, g.first) for g in told}) == 1000


@pytest.mark.parametrize("instance", ["A" * 256, "C/\u202e Mrs Miller"])
def test_a_gap_names_its_producer_whatever_the_instance_is_called(
    suite: Suite, logger: Any, instance: str
) -> None:
    metrics = AuditMetrics(CollectorRegistry())
    committer = Committer(MeteredAppender(suite.log, metrics), logger, 100, lambda _: None)
    committer.start()
    events = OwnEvents(lambda: committer, suite.maker, AUDIT, metrics, logger)
    producer = f"spiffe://sealward.local/workload/{'w' * 63}"
    try:
        events.gap(Gap(producer, instance, 1, 1 << 62, closed=False))
    finally:
        committer.close(10)
    (leaf,) = suite.store.leaves(0, 1)
    span = Span.FromString(suite.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
    values = {pair.key: pair.value.string_value for pair in span.attributes}
    target = values[names.TARGET]
    assert target.startswith(f"{producer}/sha256:")
    assert target.endswith(f"/1-{1 << 62}")
    assert "Miller" not in target
