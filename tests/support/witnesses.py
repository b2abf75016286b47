"""Witnesses without their transports: the real decision of the keys service, in this process."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sealward.kit.errors import SealwardError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.tlog.cosignature import CosignatureVerifier, Cosigner
from services.audit.cosigning.asking import Answer, WitnessAwayError
from services.audit.cosigning.builtin import Known
from services.keys.witness.witness import Witness
from tests.support.cosigners import ed25519, ml_dsa


class Keys:
    """services.keys.witness.cosigning.WitnessKeys in memory."""

    def __init__(self, *cosigners: Cosigner) -> None:
        self._cosigners = cosigners

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        return [cosigner.verifier for cosigner in self._cosigners]

    def cosigners(self) -> Sequence[Cosigner]:
        return self._cosigners


class Recorded:
    """Records of the witness, by type."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def record(self, event_type: str, outcome: str, **_attributes: Any) -> bytes:
        self.types.append(event_type)
        return b""


class LocalWitness:
    """A witness as the audit service sees it (BuiltinWitness), which can be made to fail."""

    url = ""

    def __init__(self, folder: Path, name: str = "built-in", *, post_quantum: bool = True) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.name = name
        cosigners = [ed25519(f"sealward.local/witness/{name}")]
        if post_quantum:
            cosigners.append(ml_dsa(f"sealward.local/witness/{name}"))
        self._keys = Keys(*cosigners)
        self.records = Recorded()
        self.witness = Witness(
            folder,
            self._keys,
            self.records,
            get_logger("keys", io.StringIO()),
            trust_domain="sealward.local",
            clock=lambda: 1_790_000_000,
        )
        self.down = False
        self.tells = True
        self.asked: list[bytes] = []
        self.answers: list[Answer] = []

    @property
    def verifiers(self) -> Sequence[CosignatureVerifier]:
        return self._keys.verifiers

    def add_checkpoint(self, body: bytes) -> Answer:
        self.asked.append(body)
        if self.down:
            raise WitnessAwayError
        if self.answers:
            return self.answers.pop(0)
        answer = self.witness.add_checkpoint(body)
        return Answer(answer.status, answer.body)

    def latest(self, origin: str) -> bytes:
        if self.down:
            raise WitnessAwayError
        known = self.known().get(origin)
        return known.checkpoint if known and self.tells else b""

    def known(self) -> dict[str, Known]:
        if self.down:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down", retry_after=1.0)
        return {
            log.origin: Known(log.vkeys, log.checkpoint, log.successor)
            for log in self.witness.logs()
        }

    def add_log(self, vkey: str, proof: bytes) -> None:
        if self.down:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down", retry_after=1.0)
        self.witness.add_log(vkey, proof)

    def close(self) -> None:
        self.witness.close()
