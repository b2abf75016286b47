"""People who sign, keys that are numbers, an audit that says yes or no: to test destruction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from sealward.kit.errors import SealwardError
from sealward.kit.identity import peer_from_certificate
from sealward.kit.reasons import Reason
from sealward.kit.statement import sign
from sealward.seal.context import EncryptionContext
from services.keys.destruction import SCHEMA, Subject
from services.keys.providers.base import Condition, Versions
from tests.conftest import CertificateAuthority

TD = "sealward.local"
_AUTHORITY = CertificateAuthority()


class Person:
    """Somebody with a certificate."""

    def __init__(self, name: str, kind: str = "user") -> None:
        self.name = name
        material = _AUTHORITY.issue(f"spiffe://{TD}/{kind}/{name}")
        self.key_pem, self.chain_pem = material.key_pem, material.chain_pem
        self.peer = peer_from_certificate(self.chain_pem, "")

    def sign(self, payload: bytes) -> bytes:
        return sign(payload, self.key_pem, self.chain_pem)


def a_statement(**fields: str) -> bytes:
    value = {
        "schema": SCHEMA, "id": secrets.token_hex(16), "tenant": "default", "purpose": "model",
        "resource": "", "reason": "test", **fields,
    }  # fmt: skip
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


class Clock:
    """SteadyClock that is moved by hand."""

    def __init__(self) -> None:
        self.now, self.is_steady = 1_000_000, True

    def __call__(self) -> int:
        return self.now

    def steady(self) -> bool:
        return self.is_steady


class FakeGuard:
    """Guard with one hold for everything."""

    def __init__(self) -> None:
        self.held = False
        self.reason = Reason.DESTRUCTION_HELD
        self.asked: list[tuple[str, bool]] = []

    def permit(self, subject: Subject, *, look: bool) -> None:
        self.asked.append((subject.id, look))
        if self.held:
            raise SealwardError(self.reason, "held")

    def destroy_patient(self, subject: Subject) -> int:
        self.asked.append((subject.id, False))
        return 1

    def move_on(self, subject: Subject) -> None:
        self.asked.append((subject.id, False))


class Records:
    """Recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        self.events.append((event_type, outcome, attributes))
        return bytes(16)

    @property
    def types(self) -> list[str]:
        return [event for event, _, _ in self.events]


class Log:
    """Logger that says nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_fields: None


class PlainKeys:
    """BranchKeys whose key-encryption keys are numbers; fails after some calls when told to."""

    name = "plain"
    single_host = True

    def __init__(self) -> None:
        self.lowest = {"session": 1, "model": 1}
        self.newest = {"session": 1, "model": 1}
        self.fails_after: int | None = None

    def _call(self) -> None:
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                raise SealwardError(Reason.KEYSTORE_UNAVAILABLE, "away")

    def condition(self) -> Condition:
        return Condition("ready")

    def create(self, _context: EncryptionContext) -> tuple[bytes, bytes]:
        key = secrets.token_bytes(32)
        return key, key

    def open(self, _context: EncryptionContext, wrapped: bytes) -> bytes:
        return wrapped

    def version_of(self, _wrapped: bytes) -> int:
        return 1

    def names(self) -> list[tuple[str, str]]:
        return [("default", purpose) for purpose in self.newest]

    def versions(self, _tenant: str, purpose: str) -> Versions:
        self._call()
        return Versions(self.lowest[purpose], self.newest[purpose], ())

    def rotate(self, _tenant: str, purpose: str) -> int:
        self._call()
        self.newest[purpose] += 1
        self._call()
        return self.newest[purpose]

    def rewrap(self, items: Sequence[tuple[EncryptionContext, bytes]]) -> list[bytes | None]:
        return [wrapped for _, wrapped in items]

    def retire(self, _tenant: str, purpose: str, below: int) -> None:
        self._call()
        self.lowest[purpose] = max(self.lowest[purpose], below)
        self._call()
