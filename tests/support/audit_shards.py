"""The logs of several tenants on real files; only keys service and clock are replaced.

As a program, `FOLDER TENANT STRIDE`: for every STRIDE-th step a process of its own appends, turns
the log, and is killed (SIGKILL) at that step of the turn: before the n-th thing that is written.
Prints, for each, the step and the ids that were acknowledged, and `done` when the turn came to its
end first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from services.audit.backend import FileBackend, Place, Places
from services.audit.log import Placed
from services.audit.rollover import Rollover
from services.audit.shard import Hooks, Parts
from services.audit.shards import Shards, TenantMaker
from services.audit.store import LogStore
from tests.support.audit_suite import GATEWAY, Ring, entry_bytes

YEAR = 365 * 24 * 3600 * 1_000_000_000
IN_2026 = 1_790_000_000_000_000_000
TENANTS = ("default", "north")


class Clock:
    """A time that a test sets, in nanoseconds since the epoch."""

    def __init__(self, now: int = IN_2026) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Logs:
    """Open logs, and how they are made."""

    def __init__(
        self,
        folder: Path,
        ring: Ring | None = None,
        clock: Clock | None = None,
        tenants: Sequence[str] = TENANTS,
        backend: FileBackend | None = None,
        hooks: Hooks | None = None,
        **options: Any,
    ) -> None:
        self.folder = folder
        self.ring = ring or Ring()
        self.clock = clock or Clock()
        self.parts = Parts(
            backend or FileBackend(),
            self.ring,
            "sealward.local",
            structlog.stdlib.get_logger(),
            publish_seconds=0.01,
            hooks=hooks or Hooks(),
        )
        self.rollover = Rollover(self.parts, Places(folder), self.clock, **options)
        self.shards: Shards = self.rollover.open(tenants)
        self.maker = TenantMaker(self.shards)
        self.rollover.start()

    def append(self, *bodies: bytes) -> list[Any]:
        """Append entries as the gateway does; return the results with their checkpoints."""
        done = self.shards.append([self.maker.appended(body, GATEWAY) for body in bodies])
        for result in done.results:
            if isinstance(result, Placed):
                result.checkpoint = result.checkpoint or done.checkpoint
        return done.results

    def close(self) -> None:
        self.rollover.stop(20)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Logs]:
    logs = Logs(folder, **options)
    try:
        yield logs
    finally:
        logs.close()


class KillingBackend(FileBackend):
    """Counts what is written once `armed`, and kills the process before the n-th of it."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at
        self.armed = False

    def step(self) -> None:
        if self.armed:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        self.step()
        store = super().store(place, sealed=sealed)
        for name in ("put", "commit", "close"):
            setattr(store, name, self._counted(getattr(store, name)))
        return store

    def move(self, old: Place, new: Place) -> None:
        real = Path.rename

        def rename(source: Path, target: Path) -> Path:
            self.step()
            return real(source, target)

        Path.rename = rename  # type: ignore[method-assign,assignment]
        try:
            super().move(old, new)
        finally:
            Path.rename = real  # type: ignore[method-assign]

    def discard(self, place: Place) -> None:
        self.step()
        super().discard(place)

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.step()
            return real(*args, **named)

        return call


def killed_at(folder: Path, step: int, tenant: str) -> None:
    """Append, begin a turn, and die at a step of it."""
    backend = KillingBackend(step)
    logs = Logs(folder, backend=backend)
    placed = logs.append(*(entry_bytes(tenant=tenant) for _ in range(300)))
    sys.stdout.write(" ".join(p.leaf[1:17].hex() for p in placed) + "\n")
    sys.stdout.flush()
    backend.armed = True
    logs.rollover.turn(tenant)
    backend.armed = False
    logs.close()
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.umask(0o077)
    number = 1 - int(sys.argv[3])
    while True:
        number += int(sys.argv[3])
        sys.stdout.write(f"step {number}\n")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            killed_at(Path(sys.argv[1]) / str(number), number, sys.argv[2])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(os.waitstatus_to_exitcode(status))
