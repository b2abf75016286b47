"""The checkpoints of every log that a client has met, and when they are to be proven.

Shared by the blocking and the asynchronous client; holds no lock and opens no socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice

from google.protobuf.message import DecodeError

from sealward.api.gateway.v1.gateway_pb2 import GetConsistencyRequest, GetConsistencyResponse
from sealward.client.checkpoints import MAX_PENDING, CheckpointTracker, Seen
from sealward.client.connection import Reply
from sealward.client.errors import ConsistencyUnavailableError
from sealward.client.profile import Profile
from sealward.client.verify import Proof
from sealward.kit.reasons import Code

METHOD = "/sealward.api.gateway.v1.LogService/GetConsistency"

TIMEOUT_SECONDS = 10.0
"""Of one consistency call."""

SIZES_A_CALL = 64
"""Sizes asked for in one call."""

Chain = tuple[Seen, ...]

# What a log answers that has not got a size which it signed. Everything else may pass.
_REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.OUT_OF_RANGE,
        Code.FAILED_PRECONDITION,
        Code.DATA_LOSS,
    }
)


class CheckpointBook:
    """Trackers by origin, kept in the profile. `interval` is in seconds; 0 proves every call's."""

    def __init__(
        self,
        profile: Profile,
        interval: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._interval = interval
        self._clock = clock
        self._settled = clock()
        self._trackers = {
            origin: CheckpointTracker(seen) for origin, seen in profile.checkpoints().items()
        }

    def observe(self, proof: Proof) -> bool:
        """Take note of a receipt's checkpoint; return whether it must be proven now.

        Raises ForkError.
        """
        tracker = self._trackers.setdefault(proof.origin, CheckpointTracker())
        first = tracker.head is None
        owes = tracker.observe(proof.checkpoint)
        if first:
            self._profile.keep_checkpoint(proof.origin, proof.checkpoint)
        if not owes:
            return False
        waited = self._clock() - self._settled
        return waited >= self._interval or tracker.pending >= MAX_PENDING

    def owes(self, proof: Proof) -> bool:
        """Whether this receipt's checkpoint still waits for its proof. Raises ForkError."""
        return self._trackers[proof.origin].owes(proof.checkpoint.size)

    def chain(self, origin: str) -> Chain:
        """Return what is to be proven now, in rising size; empty when nothing waits."""
        return self._trackers[origin].chain()

    def waiting(self) -> list[str]:
        """Return the origins with checkpoints that wait for their proof."""
        return [origin for origin, tracker in self._trackers.items() if tracker.pending]

    def settle(self, origin: str, chain: Chain, proofs: Sequence[bytes]) -> None:
        """Check the proofs, accept the chain and keep its end. Raises ForkError."""
        tracker = self._trackers[origin]
        before = tracker.head
        tracker.settle(chain, proofs)
        self._settled = self._clock()
        if tracker.head is not None and tracker.head is not before:
            self._profile.keep_checkpoint(origin, tracker.head)

    def refused(self, origin: str, chain: Chain, reply: Reply) -> Exception:
        """Return what to raise for a consistency call that failed.

        A log that declines to prove sizes which it signed has forked or lost its tail; a gateway
        that cannot be asked has not.
        """
        if reply.code in _REFUSALS:
            return self._trackers[origin].refuse(chain)
        return ConsistencyUnavailableError(
            f"the gateway gave no consistency proof: {reply.code.name}"
        )


def requests(chain: Chain, origin: str) -> list[bytes]:
    """Return the serialised calls that prove a chain; each begins where the one before ended."""
    step = SIZES_A_CALL - 1
    return [
        GetConsistencyRequest(
            sizes=[seen.size for seen in islice(chain, at, at + SIZES_A_CALL)], origin=origin
        ).SerializeToString()
        for at in range(0, len(chain) - 1, step)
    ]


def proofs_of(response: bytes) -> list[bytes]:
    """Return the proofs of one answer; a malformed one has none, and so proves nothing."""
    try:
        return list(GetConsistencyResponse.FromString(response).proofs)
    except DecodeError:
        return []
