"""The clock in the record: what the kernel says, and how often it is written down."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from sealward.kit.clock import Adjtimex, Reading, Timex, read_clock
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.clock import ClockKeeper
from services.audit.metrics import AuditMetrics
from services.audit.shards import Shards


def kernel(state: int, **values: int) -> Adjtimex:
    def adjtimex(timex: Timex) -> int:
        assert timex.modes == 0
        for name, value in values.items():
            setattr(timex, name, value)
        return state

    return adjtimex


def test_the_kernel_of_this_machine_answers() -> None:
    reading = read_clock()
    assert reading.source.startswith("system clock (")
    assert reading.synchronised in {"yes", "no", "unknown"}
    assert ctypes.sizeof(Timex) >= 208


@pytest.mark.parametrize(
    ("adjtimex", "expected"),
    [
        (kernel(0, offset=-250, maxerror=1500), Reading("ntp", "yes", -250, 1500)),
        (kernel(0, offset=7_400_900, maxerror=90, status=0x2000), Reading("ntp", "yes", 7400, 90)),
        # A second is being inserted: the clock is in step.
        (kernel(1, offset=5, maxerror=6), Reading("ntp", "yes", 5, 6)),
        (kernel(5, status=0x40, maxerror=16_000_000), Reading("ntp", "no")),
        # It was kept in step and has been left alone since.
        (kernel(5, status=0x40, offset=3, maxerror=70_000), Reading("ntp", "no", 3, 70_000)),
        (kernel(0, status=0x40, maxerror=70_000), Reading("ntp", "no", 0, 70_000)),
        (kernel(-1), Reading("ntp", "unknown")),
    ],
)
def test_what_the_kernel_says(adjtimex: Adjtimex, expected: Reading) -> None:
    assert read_clock("ntp", adjtimex) == expected


def test_a_kernel_that_may_not_be_asked() -> None:
    def refuse(_timex: Timex) -> int:
        raise OSError

    assert read_clock("", refuse).synchronised == "unknown"


@dataclass
class Machine:
    """A log that grows when it is told to, a time that a test sets."""

    size: int = 3
    now: float = 100.0
    full: bool = False
    recorded: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = AuditMetrics(CollectorRegistry())
        self.reading = Reading("ntp", "yes", -250, 1500)
        self.keeper = ClockKeeper(lambda: self.reading, self.record, self.metrics, lambda: self.now)

    tenants = ("default",)
    origin = "log"

    def current(self, _tenant: str = "") -> Any:
        return self

    @property
    def log(self) -> Any:
        return self

    @property
    def head(self) -> tuple[int, bytes]:
        return self.size, b""

    def record(self, _reading: Reading, origin: str, size: int) -> None:
        if self.full:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "full")
        self.recorded.append((origin, size))
        self.size += 1

    def tick(self, seconds: float = 1.0) -> int:
        self.now += seconds
        self.keeper.tick(cast("Shards", self))
        return len(self.recorded)


def test_once_at_the_start_and_never_again_on_a_log_at_rest() -> None:
    machine = Machine()
    assert machine.tick() == 1
    assert machine.recorded == [("log", 3)]
    for _ in range(5):
        assert machine.tick(3600) == 1
    assert machine.size == 4


def test_once_for_a_time_in_which_the_log_grew_and_once_a_minute_at_most() -> None:
    machine = Machine()
    machine.tick()
    counts = []
    for _ in range(10):
        machine.size += 50
        counts.append(machine.tick(20))
    assert counts == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4]


def test_an_entry_that_could_not_be_written_is_tried_again() -> None:
    machine = Machine(full=True)
    assert machine.tick() == 0
    machine.full = False
    assert machine.tick() == 1


def test_the_gauges_say_when_it_is_not_known() -> None:
    machine = Machine()
    machine.tick()
    assert machine.metrics.clock_offset._value.get() == -0.00025
    assert machine.metrics.clock_error._value.get() == 0.0015
    assert machine.metrics.clock_synchronised._value.get() == 1
    machine.reading = Reading("ntp", "unknown")
    machine.size += 1
    machine.tick(100)
    assert machine.metrics.clock_synchronised._value.get() == 0
    assert machine.metrics.clock_offset._value.get() != machine.metrics.clock_offset._value.get()
