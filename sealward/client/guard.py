"""The blocking half of fork detection: asks the gateway for the proofs that the book wants."""

from __future__ import annotations

import threading

from sealward.client import book as pages
from sealward.client.book import Chain
from sealward.client.connection import Connection, Reply
from sealward.client.core import Core
from sealward.client.errors import ConsistencyUnavailableError
from sealward.client.verify import Proof
from sealward.kit.reasons import Code


class Guard:
    """Verifies how a call ended. Thread-safe; calls in flight share one consistency call."""

    def __init__(self, core: Core, connection: Connection) -> None:
        self._core = core
        self._connection = connection
        self._lock = threading.Lock()
        self._settling = threading.Lock()

    def answered(self, request: bytes, reply: Reply) -> Proof:
        """Return the proof of a prediction, or raise what the call deserves.

        Raises CallError for a failed call, TrustError for an answer that must not be used.
        """
        if reply.code is not Code.OK:
            raise self.refused(request, reply)
        proof = self._core.answered(request, reply)
        self.witness(proof)
        return proof

    def controlled(self, reply: Reply) -> None:
        """Check how a control call ended: its receipt must hold if it has one. Raises CallError."""
        if reply.code is not Code.OK:
            raise self.refused(None, reply)
        proof = self._core.controlled(reply)
        if proof is not None:
            self._witness_quietly(proof)

    def refused(self, request: bytes | None, reply: Reply) -> Exception:
        """Return the error of a failed call, its receipt verified. Raises TrustError.

        `request` is None for a control call.
        """
        refusal = self._core.refused(request, reply)
        if refusal.proof is not None:
            self._witness_quietly(refusal.proof)
        return refusal.error

    def witness(self, proof: Proof) -> None:
        """Compare a receipt's checkpoint with those seen before.

        Raises ForkError or ConsistencyUnavailableError.
        """
        with self._lock:
            due = self._core.book.observe(proof)
        if due:
            self._settle(proof.origin, proof)

    def settle(self) -> None:
        """Prove every checkpoint that still waits. Raises as `witness`."""
        with self._lock:
            waiting = self._core.book.waiting()
        for origin in waiting:
            self._settle(origin, None)

    def _witness_quietly(self, proof: Proof) -> None:
        """As `witness`, for answers that release nothing: an absent proof can wait."""
        try:
            self.witness(proof)
        except ConsistencyUnavailableError:
            return

    def _settle(self, origin: str, proof: Proof | None) -> None:
        book = self._core.book
        with self._settling:
            with self._lock:
                if proof is not None and not book.owes(proof):
                    return
                chain = book.chain(origin)
            if not chain:
                return
            proofs = self._fetch(origin, chain)
            with self._lock:
                book.settle(origin, chain, proofs)

    def _fetch(self, origin: str, chain: Chain) -> list[bytes]:
        proofs: list[bytes] = []
        for request in pages.requests(chain, origin):
            reply = self._connection.unary(
                pages.METHOD, request, self._core.bearer_if_any(), pages.TIMEOUT_SECONDS
            )
            if reply.code is not Code.OK:
                with self._lock:
                    raise self._core.book.refused(origin, chain, reply)
            proofs += pages.proofs_of(reply.body)
        return proofs
