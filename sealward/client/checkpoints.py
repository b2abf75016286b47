"""Does the log only grow? Pure bookkeeping over the checkpoints that receipts carried.

Every answer refers to a signed checkpoint (size, root). Two checkpoints of one size must have one
root, and for two sizes the log owes a consistency proof (RFC 6962 section 2.1.2). Calls in flight
together see checkpoints out of order, so a smaller size than the largest seen is not wrong by
itself: it owes its proof like any other.

`CheckpointTracker` decides; who uses it fetches the proofs. It is not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sealward.client.errors import ForkError
from sealward.tlog.errors import ProofError
from sealward.tlog.merkle import split_hashes, verify_consistency

_REMEMBERED = 1024

MAX_PENDING = 512
"""Checkpoints that may wait for their proof; with more the caller must settle."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint whose signature was verified: size, root (32 bytes) and the signed note."""

    size: int
    root: bytes
    note: bytes


class CheckpointTracker:
    """The checkpoints of one log (origin) that this client has seen.

    `head` is the largest one that is proven to continue the ones before. The first one ever seen is
    taken on trust, as with a host key.
    """

    def __init__(self, head: Seen | None = None) -> None:
        self.head = head
        self._known: OrderedDict[int, Seen] = OrderedDict()
        self._pending: dict[int, Seen] = {}
        self._fork: ForkError | None = None
        if head is not None:
            self._known[head.size] = head

    @property
    def pending(self) -> int:
        """How many checkpoints wait for their proof."""
        return len(self._pending)

    def observe(self, seen: Seen) -> bool:
        """Take note of a checkpoint; return whether it still owes a proof.

        Raises ForkError when another root is known for its size, and ever after.
        """
        self._raise_fork()
        other = self._known.get(seen.size) or self._pending.get(seen.size)
        if other is not None and other.root != seen.root:
            raise self._forked("two roots for one size of the log", other, seen)
        if seen.size in self._known:
            return False
        if self.head is None:
            self._accept([seen])
            return False
        self._pending[seen.size] = seen
        return True

    def owes(self, size: int) -> bool:
        """Whether the checkpoint of this size still waits for its proof. Raises ForkError."""
        self._raise_fork()
        return size in self._pending

    def chain(self) -> tuple[Seen, ...]:
        """Return the checkpoints to be proven, in rising size, the head among them.

        Consistency proofs of the neighbouring pairs prove all of them. Empty when nothing waits.
        """
        if self.head is None or not self._pending:
            return ()
        return tuple(sorted((self.head, *self._pending.values()), key=lambda seen: seen.size))

    def settle(self, chain: Sequence[Seen], proofs: Sequence[bytes]) -> None:
        """Check the proofs (joined hashes) of a chain's neighbouring pairs and accept it.

        Raises ForkError when one does not hold or is missing.
        """
        if len(proofs) != len(chain) - 1:
            raise self._forked("the log proved other sizes than asked", chain[0], chain[-1])
        for (old, new), proof in zip(pairwise(chain), proofs, strict=True):
            try:
                verify_consistency(old.size, new.size, split_hashes(proof), old.root, new.root)
            except ProofError as error:
                text = f"the log of size {new.size} does not continue the one of size {old.size}"
                raise self._forked(text, old, new) from error
        self._accept(chain)

    def refuse(self, chain: Sequence[Seen]) -> ForkError:
        """Note that the log declined to prove a chain of sizes that it signed itself."""
        text = f"the log does not prove its sizes {chain[0].size} to {chain[-1].size}"
        return self._forked(text, chain[0], chain[-1])

    def _accept(self, chain: Iterable[Seen]) -> None:
        for seen in chain:
            self._pending.pop(seen.size, None)
            self._known[seen.size] = seen
            self._known.move_to_end(seen.size)
            if self.head is None or seen.size > self.head.size:
                self.head = seen
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _forked(self, message: str, seen: Seen, shown: Seen) -> ForkError:
        # What waited can be proven no more; observe and owes raise from now on.
        self._pending.clear()
        self._fork = ForkError(message, seen.note, shown.note)
        return self._fork

    def _raise_fork(self) -> None:
        if self._fork is not None:
            raise ForkError(str(self._fork), self._fork.seen, self._fork.shown)
