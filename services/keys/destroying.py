"""Carries destructions out when their time has come: one thread, one step after the other.

Of a whole key: `rotated` (what is sealed from now on is under a new version), `retired` (the older
ones are gone, in the keystore's other halves first). Of a patient: `patient` (audit destroyed the
patient's keys in its stores), `rotated`, `rewrapped` (everybody else's keys moved on), `retired`
(so the destroyed ones in backups of audit open no more). Each step may be taken again: killed
anywhere, it goes on at the next start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry, Gauge

from sealward.kit.errors import SealwardError
from sealward.kit.logging import where
from sealward.kit.reasons import Code, Reason
from services.keys import destruction as steps
from services.keys.destruction import Destruction, State, Subject
from services.keys.destructions import Destructions
from services.keys.keystore import Keystore
from services.keys.providers.base import BranchKeys
from services.keys.records import Recorder
from services.keys.rotation import Confirmations

CLOCK = "clock"
"""What blocks a destruction while the clock cannot be believed."""
_RETRY_SECONDS = 5.0
_LONGEST_PAUSE = 60.0
_DRIFT_SECONDS = 3600.0
_FATAL = (State.WAITING, State.EXECUTING)


class Guard(Protocol):
    """What the audit service says and does (services.keys.auditor.AuditGuard)."""

    def permit(self, subject: Subject, *, look: bool) -> None:
        """Raise DESTRUCTION_HELD where a hold or retention covers it; AUDIT_UNAVAILABLE.

        Unless it only looks, the permission is in the log when this returns.
        """

    def destroy_patient(self, subject: Subject) -> int:
        """Have the keys of a patient destroyed; return how many there were. Raise SealwardError."""

    def move_on(self, subject: Subject) -> None:
        """Have every other key of the tenant and purpose wrapped anew. Raise SealwardError."""


class SteadyClock:
    """The wall clock, and whether it went as far as the time that has passed since the start."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        passed: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall, self._passed = wall, passed
        self._start = wall() - passed()

    def __call__(self) -> int:
        """Seconds since the epoch."""
        return int(self._wall())

    def steady(self) -> bool:
        """False when the clock was set by more than an hour since the start."""
        return abs(self._wall() - self._passed() - self._start) <= _DRIFT_SECONDS


class Destroyer:
    """Thread-safe. `changed` is called when keys were destroyed: whoever leases some is told."""

    def __init__(
        self,
        destructions: Destructions,
        branches: BranchKeys,
        keystore: Keystore | None,
        confirmations: Confirmations,
        guard: Guard,
        recorder: Recorder,
        log: structlog.typing.FilteringBoundLogger,
        *,
        clock: SteadyClock,
        changed: Callable[[], None],
    ) -> None:
        self._destructions = destructions
        self._branches = branches
        self._keystore = keystore
        self._confirmations = confirmations
        self._guard = guard
        self._recorder = recorder
        self._log = log
        self._clock = clock
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="destructions", daemon=True)

    def start(self) -> None:
        """Carry out what is due from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()
        with self._destructions.changed:
            self._destructions.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def tick(self) -> bool:
        """Carry out what is due; return whether something could not be."""
        waits = False
        for found in reversed(self._destructions.all()):
            due = found.state is State.WAITING and self._clock() >= found.due_at
            if due or found.state is State.EXECUTING:
                waits |= not self._carry_out(found)
        return waits

    def _carry_out(self, found: Destruction) -> bool:
        try:
            if found.state is State.WAITING:
                found = self._begin(found)
            self._go_on(found)
        except SealwardError as error:
            self._blocked(found.subject.id, error.reason.name)
            return False
        except _ClockError:
            self._blocked(found.subject.id, CLOCK)
            return False
        return True

    def _begin(self, found: Destruction) -> Destruction:
        subject = found.subject
        if not self._clock.steady():
            raise _ClockError
        through = self._branches.versions(subject.tenant, subject.purpose).newest
        self._guard.permit(subject, look=False)
        self._record("keys.destroy", found)
        # From here on nothing under these versions opens.
        begun = self._destructions.put(found, steps.begin(found, through, self._clock()))
        self._changed()
        return begun

    def _go_on(self, found: Destruction) -> None:
        subject = found.subject
        todo = [("rotated", self._rotate), ("retired", self._retire)]
        if subject.resource:
            todo = [
                ("patient", self._patient), ("rotated", self._rotate), ("rewrapped", self._move_on),
                ("retired", self._retire),
            ]  # fmt: skip
        names = [name for name, _ in todo]
        at = names.index(found.step) + 1 if found.step else 0
        for name, take in todo[at:]:
            if self._stop.is_set():
                return
            take(found)
            found = self._destructions.put(found, steps.advance(found, name))
        self._record("keys.destroyed", found)
        self._destructions.put(found, steps.finish(found, self._clock()))
        self._changed()
        self._log.info("key.destroyed", name=subject.id)

    def _patient(self, found: Destruction) -> None:
        self._guard.destroy_patient(found.subject)

    def _rotate(self, found: Destruction) -> None:
        subject = found.subject
        if self._branches.versions(subject.tenant, subject.purpose).newest <= found.through:
            self._branches.rotate(subject.tenant, subject.purpose)

    def _move_on(self, found: Destruction) -> None:
        subject = found.subject
        self._guard.move_on(subject)
        if self._confirmations.below(subject.tenant, subject.purpose) <= found.through:
            raise SealwardError(
                Reason.KEY_IN_USE, "other keys of this purpose have not moved on", retry_after=1.0
            )

    def _retire(self, found: Destruction) -> None:
        subject = found.subject
        if self._keystore is not None and not subject.resource:
            self._keystore.note_destroyed(subject.tenant, subject.purpose, found.through)
        self._branches.retire(subject.tenant, subject.purpose, found.through + 1)

    def _blocked(self, destruction_id: str, why: str) -> None:
        found = self._destructions.get(destruction_id)
        if found.state not in _FATAL or found.blocked == why:
            return
        self._log.warning("destruction.blocked", name=destruction_id, reason=why)
        try:
            self._record("keys.destroy-blocked", found, why)
            self._destructions.put(found, steps.block(found, why))
        except SealwardError:
            # It is tried again anyhow, and then told again.
            return

    def _record(self, event: str, found: Destruction, why: str = "") -> None:
        reason = (Reason.DESTRUCTION_STATE.name if why == CLOCK else why) or None
        self._recorder.record(
            event,
            "failed" if why else "ok",
            code=Code.FAILED_PRECONDITION.name if why else Code.OK.name,
            reason=reason,
            target=f"{found.subject.id} {found.subject.target}",
        )

    def _run(self) -> None:
        waits = False
        while not self._stop.is_set():
            try:
                waits = self.tick()
            except Exception as error:  # noqa: BLE001 - it has to go on
                waits = True
                self._log.error("internal", error_type=type(error).__name__, where=where(error))
            with self._destructions.changed:
                if not self._stop.is_set():
                    self._destructions.changed.wait(self._pause(waits))

    def _pause(self, waits: bool) -> float:
        if waits:
            return _RETRY_SECONDS
        now = self._clock()
        due = [f.due_at - now for f in self._destructions.all() if f.state is State.WAITING]
        return max(0.1, min([_LONGEST_PAUSE, *due]))


class _ClockError(Exception):
    """The clock was set."""


def destruction_metrics(registry: CollectorRegistry, destructions: Destructions) -> None:
    """Register how many destructions are in each state, and how many are blocked."""
    gauge = Gauge(
        "sealward_keys_destructions", "Destructions of keys, by state", ["state"], registry=registry
    )

    def counting(wanted: State) -> Callable[[], float]:
        return lambda: float(sum(found.state is wanted for found in destructions.all()))

    for state in State:
        gauge.labels(state.value).set_function(counting(state))
    Gauge(
        "sealward_keys_destructions_blocked", "Destructions that are due and held up",
        registry=registry,
    ).set_function(
        lambda: float(sum(bool(found.blocked) for found in destructions.all()))
    )  # fmt: skip
