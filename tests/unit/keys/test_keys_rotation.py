"""RotationService: who may do what, and when an old version may be destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.api.common.v1 import holder_pb2
from sealward.api.keys.v1 import rotation_pb2 as pb
from sealward.kit.errors import SealwardError
from sealward.kit.identity import parse_identity
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.keys.holding import OwnHolder, OwnKeysServicer
from tests.support.local_keys import LocalKeys, context_as

MODEL = EncryptionContext("default", "model", "m@1")
ADMIN, INFERENCE = "admin/local", "service/inference"


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[LocalKeys]:
    made = LocalKeys(tmp_path / "keys")
    yield made
    made.close()


def refused(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call(*arguments)
    return caught.value.reason


def rotate(keys: LocalKeys, purpose: str = "model") -> int:
    context = context_as(ADMIN)
    request = pb.RotateKeyRequest(tenant="default", purpose=purpose)
    version = keys.servicer.RotateKey(request, context).version
    assert context.sealward_call.attributes["target"] == f"default/{purpose}@{version}"
    return int(version)


def confirm(keys: LocalKeys, version: int, who: str = INFERENCE, purpose: str = "model") -> None:
    request = pb.ConfirmRewrapRequest(tenant="default", purpose=purpose, version=version)
    keys.servicer.ConfirmRewrap(request, context_as(who))


def retire(keys: LocalKeys, below: int) -> int:
    request = pb.RetireKeyRequest(tenant="default", purpose="model", below=below)
    return int(keys.servicer.RetireKey(request, context_as(ADMIN)).lowest)


def test_a_service_sees_the_keys_of_its_purposes(keys: LocalKeys) -> None:
    for purpose in ("model", "session", "audit-index", "nobody-has-this"):
        keys.provider.create(EncryptionContext("default", purpose, "x"))

    def seen(who: str) -> list[tuple[str, str]]:
        answer = keys.servicer.ListKeys(pb.ListKeysRequest(), context_as(who))
        return [(key.purpose, key.holder) for key in answer.keys]

    assert seen("service/audit") == [("audit-index", "service/audit")]
    assert seen(INFERENCE) == [("model", INFERENCE)]
    assert seen(ADMIN) == [
        ("audit-index", "service/audit"),
        ("model", INFERENCE),
        ("nobody-has-this", ""),
        ("session", "service/gateway"),
    ]


def test_ages_and_versions_are_told(keys: LocalKeys) -> None:
    keys.provider.create(MODEL)
    assert rotate(keys) == 2
    confirm(keys, 2)
    (key,) = keys.servicer.ListKeys(pb.ListKeysRequest(), context_as(ADMIN)).keys
    assert (key.lowest, key.newest, key.confirmed, len(key.made)) == (1, 2, 2, 2)
    assert all(key.made)


def test_nobody_rewraps_keys_of_anothers_purpose(keys: LocalKeys) -> None:
    _, wrapped = keys.provider.create(MODEL)
    request = pb.RewrapKeysRequest(tenant="default", purpose="model")
    request.keys.add(resource="m@1", wrapped=wrapped)
    for who in ("service/audit", "service/gateway"):
        assert refused(keys.servicer.RewrapKeys, request, context_as(who)) is (
            Reason.IDENTITY_FORBIDDEN
        )
        assert refused(confirm, keys, 1, who) is Reason.IDENTITY_FORBIDDEN
    (answer,) = keys.servicer.RewrapKeys(request, context_as(INFERENCE)).keys
    assert (answer.wrapped, answer.version) == (b"", 1)


class Own:
    """Something of the keys service with a wrapped key."""

    def __init__(self, keys: LocalKeys, purpose: str) -> None:
        self.keys = keys
        self.context = EncryptionContext("default", purpose, "own")
        self.key, self.wrapped = keys.provider.create(self.context)
        self.broken = False

    def rewrap(self) -> bool:
        if self.broken:
            raise SealwardError(Reason.SEAL_BROKEN, "no")
        (new,) = self.keys.provider.rewrap([(self.context, self.wrapped)])
        assert new is not None
        old, self.wrapped = self.wrapped, new
        return new != old


def test_what_keys_keeps_itself_moves_on_too(keys: LocalKeys) -> None:
    own, other = Own(keys, "witness"), Own(keys, "trust")
    identity = parse_identity("spiffe://sealward.local/service/keys")
    servicer = OwnKeysServicer(OwnHolder(own, other), keys.servicer, identity)

    def move() -> list[tuple[str, int, int, bool]]:
        answers = servicer.Rewrap(holder_pb2.RewrapRequest(), context_as(ADMIN))
        return [(a.purpose, a.moved, a.failures, a.confirmed) for a in answers if a.done]

    keys.provider.create(MODEL)
    keys.rotate()
    own.broken = True
    assert move() == [("trust", 1, 0, True), ("witness", 0, 1, False)]
    own.broken = False
    assert move() == [("trust", 0, 0, True), ("witness", 1, 0, True)]
    assert move() == [("trust", 0, 0, True), ("witness", 0, 0, True)]
    request = pb.RetireKeyRequest(tenant="default", purpose="witness", below=2)
    keys.servicer.RetireKey(request, context_as(ADMIN))
    assert keys.provider.open(own.context, own.wrapped) == own.key


def test_what_a_request_may_hold(keys: LocalKeys) -> None:
    keys.provider.create(MODEL)
    request = pb.RewrapKeysRequest(tenant="default", purpose="model")
    for wrapped in (b"", bytes(5000)):
        del request.keys[:]
        request.keys.add(resource="m@1", wrapped=wrapped)
        assert refused(keys.servicer.RewrapKeys, request, context_as(INFERENCE)) is (
            Reason.FIELD_INVALID
        )
    del request.keys[:]
    for _ in range(501):
        request.keys.add(resource="m@1", wrapped=b"x")
    assert refused(keys.servicer.RewrapKeys, request, context_as(INFERENCE)) is (
        Reason.FIELD_INVALID
    )
    for version in (0, 2):
        assert refused(confirm, keys, version) is Reason.FIELD_INVALID
    nothing = pb.RotateKeyRequest(tenant="default", purpose="job")
    assert refused(keys.servicer.RotateKey, nothing, context_as(ADMIN)) is Reason.NOT_FOUND
    spelt = pb.RotateKeyRequest(tenant="default", purpose="Model ")
    assert refused(keys.servicer.RotateKey, spelt, context_as(ADMIN)) is Reason.FIELD_INVALID


def test_nothing_is_destroyed_before_its_holder_lets_go(keys: LocalKeys) -> None:
    key, wrapped = keys.provider.create(MODEL)
    rotate(keys)
    assert refused(retire, keys, 2) is Reason.KEY_IN_USE
    confirm(keys, 1)
    assert refused(retire, keys, 2) is Reason.KEY_IN_USE
    confirm(keys, 2)
    # Another rotation: what was confirmed is confirmed, the newer version is not.
    rotate(keys)
    assert refused(retire, keys, 3) is Reason.KEY_IN_USE
    assert keys.provider.open(MODEL, wrapped) == key
    assert retire(keys, 2) == 2
    assert refused(keys.provider.open, MODEL, wrapped) is Reason.SEAL_BROKEN
    for below in (0, 4):
        assert refused(retire, keys, below) is Reason.FIELD_INVALID


def test_a_restart_forgets_what_was_confirmed(keys: LocalKeys) -> None:
    """A restored keystore may have another key under the same number."""
    keys.provider.create(MODEL)
    rotate(keys)
    confirm(keys, 2)
    keys.restart()
    assert refused(retire, keys, 2) is Reason.KEY_IN_USE


def test_without_a_record_nothing_is_destroyed(keys: LocalKeys) -> None:
    key, wrapped = keys.provider.create(MODEL)
    rotate(keys)
    confirm(keys, 2)
    keys.records.full = True
    assert refused(retire, keys, 2) is Reason.AUDIT_UNAVAILABLE
    assert keys.provider.open(MODEL, wrapped) == key
    keys.records.full = False
    assert retire(keys, 2) == 2
    assert retire(keys, 2) == 2
    ((event, outcome, attributes),) = keys.records.rows
    assert (event, outcome, attributes["target"]) == ("keys.retire", "ok", "default/model<2")
    assert attributes["actor_id"] == "local"
