"""A log as the witnesses see it: what is asked for, what came, what satisfies the policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sealward.tlog.cosignature import CosignatureVerifier
from sealward.tlog.errors import TlogError
from sealward.tlog.note import Signature, Verifier, add_signatures, parse_vkeys
from sealward.tlog.policy import Policy, open_cosigned
from services.audit.log import LogView
from services.audit.shard import LiveShard, PastShard


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint to be cosigned: size, note as the log signed it, the lines that came so far."""

    size: int
    note: bytes
    lines: Mapping[tuple[str, bytes], Signature] = field(default_factory=dict)

    def with_lines(self, lines: Sequence[Signature]) -> Candidate:
        """Return it with more lines."""
        more = {(line.name, line.key_id): line for line in lines}
        return Candidate(self.size, self.note, {**self.lines, **more})


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest checkpoint that satisfies the policy: size, cosigned note, time (epoch)."""

    size: int = 0
    note: bytes = b""
    time: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """For which size a witness gave its cosignature, and when (monotonic)."""

    size: int
    at: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.at


class WatchedLog:
    """One log. Thread-safe: two threads ask about it.

    `on_cosigned` is told of each newest checkpoint that satisfies the policy; it asks nothing back.
    """

    def __init__(
        self,
        shard: LiveShard | PastShard,
        policy: Policy,
        on_cosigned: Callable[[WatchedLog, Newest], None],
    ) -> None:
        self.shard = shard
        self.origin = shard.origin
        self._policy = policy
        self._on_cosigned = on_cosigned
        self._lock = threading.Lock()
        self._candidates: dict[int, Candidate] = {}
        self._waiting: float | None = None
        self.newest = Newest()
        # What each witness is thought to have cosigned, and the size that it has answered for.
        self.known: dict[str, int] = {}
        self.asked: dict[str, Asked] = {}
        # The size that witnesses elsewhere are being asked for.
        self.pinned = 0
        # True for a log that no witness can take on any more.
        self.given_up = False

    @property
    def log(self) -> LogView:
        """Heads and proofs. May open files of a log that has ended; raises as Shard says."""
        return self.shard.log

    @property
    def verifiers(self) -> list[Verifier]:
        """The log's keys."""
        return parse_vkeys("\n".join(self.shard.vkeys))

    def published(self) -> tuple[int, bytes]:
        """Return the newest size whose tiles are there for everybody, and its checkpoint."""
        if isinstance(self.shard, PastShard):
            return self.shard.checkpoint.size, self.shard.final
        return self.shard.publisher.published

    @property
    def waiting(self) -> float:
        """For how many seconds there have been entries that are not cosigned; 0 for none."""
        size, _ = self.published()
        with self._lock:
            if size <= self.newest.size or self.given_up:
                self._waiting = None
                return 0.0
            now = time.monotonic()
            if self._waiting is None:
                self._waiting = now
            return now - self._waiting

    def adopt(self, note: bytes) -> None:
        """Take up a cosigned checkpoint of an earlier run, if it holds and is of this log."""
        try:
            opened = open_cosigned(note, self._policy, self.verifiers)
            checkpoint = opened.checkpoint
            size, _ = self.log.head
            if checkpoint.origin != self.origin or not 0 < checkpoint.size <= size:
                return
            if self.log.root(checkpoint.size) != checkpoint.root:
                return
        except TlogError:
            return
        self._settle(Newest(checkpoint.size, note, max(c.time for c in opened.cosignatures)))

    def note_asked(self, witness: str, size: int) -> None:
        """Note that a witness has cosigned this size."""
        self.asked[witness] = Asked(size)

    def newest_of(self, verifiers: Sequence[CosignatureVerifier]) -> tuple[int, bytes] | None:
        """Return the newest checkpoint that carries a line of one of these keys."""
        keys = {(v.name, v.key_id) for v in verifiers}
        with self._lock:
            sizes = [s for s, c in self._candidates.items() if not keys.isdisjoint(c.lines)]
            return (max(sizes), self._candidates[max(sizes)].note) if sizes else None

    def cosigned(self, size: int, note: bytes, lines: Sequence[Signature]) -> None:
        """Note the lines of a witness for a checkpoint, and whether they are enough now."""
        with self._lock:
            before = self._candidates.get(size) or Candidate(size, note)
            candidate = self._candidates[size] = before.with_lines(lines)
            kept = {size, self.pinned, max(self._candidates)}
            self._candidates = {s: c for s, c in self._candidates.items() if s in kept}
        merged = add_signatures(candidate.note, candidate.lines.values())
        try:
            opened = open_cosigned(merged, self._policy, self.verifiers)
        except TlogError:
            return
        self._settle(Newest(size, merged, max(c.time for c in opened.cosignatures)))

    def _settle(self, newest: Newest) -> None:
        # Told under the lock: two threads must not tell an older one last.
        with self._lock:
            if newest.size < self.newest.size:
                return
            self.newest = newest
            # Whoever came later waits since then at the latest.
            self._waiting = None
            self._on_cosigned(self, newest)
