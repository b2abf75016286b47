"""kill -9 at every step of a destruction: it goes on after the start, and never half."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.keys.v1 import destruction_pb2 as pb
from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.destruction_pb2_grpc import DestructionServiceStub
from sealward.kit.channel import Channels
from sealward.kit.statement import sign
from sealward.kit.tls import Credentials, Material, key_to_pem, load_material, make_csr, new_key
from sealward.seal.context import EncryptionContext
from tests.support.destructions import a_statement
from tests.support.keys_process import (
    TD,
    KeysProcess,
    embedded,
    on_vault,
    proto,
    reason_of,
)
from tests.support.waiting import until

MODEL = EncryptionContext("default", "model", "breast-cancer@1")
SESSION = EncryptionContext("default", "session", "gateway")
SETTINGS = {"DEVELOPMENT": "true", "DESTROY_WAIT_SECONDS": 0}


class Site:
    """A keys service, its administrator, and a person behind its gateway."""

    def __init__(self, process: KeysProcess) -> None:
        self.process = process
        process.command = ["-m", "tests.support.keys_destroying", "after", "0"]
        process.start()
        self.admin = process.material("admin")
        self.gateway = process.material("gateway")
        self.person = self._person("bob")

    def _person(self, name: str) -> Material:
        key = new_key()
        issued = self.keys("gateway").IssueCertificate(
            keys_pb2.IssueCertificateRequest(
                csr=make_csr(key, name).public_bytes(Encoding.DER),
                spiffe_id=f"spiffe://{TD}/user/{name}",
            )
        )
        return load_material(
            key_to_pem(key), issued.certificate_pem.encode(), issued.bundle_pem.encode()
        )

    def keys(self, name: str) -> Any:
        return self.process.stub(name)

    def desk(self, material: Material) -> DestructionServiceStub:
        channels = Channels(Credentials(material), self.process.address, f"keys.{TD}")
        return DestructionServiceStub(channels.get())

    def restarted(self, when: str, number: int) -> None:
        self.process.end()
        self.process.command = ["-m", "tests.support.keys_destroying", when, str(number)]
        self.process.start()

    def ask(self) -> tuple[str, bytes]:
        payload = a_statement()
        jws = sign(payload, self.admin.key_pem, self.admin.chain_pem)
        self.desk(self.admin).RequestDestruction(pb.RequestDestructionRequest(jws=jws))
        return json.loads(payload)["id"], payload

    def approve(self, asked: tuple[str, bytes]) -> None:
        jws = sign(asked[1], self.person.key_pem, self.person.chain_pem)
        self.desk(self.gateway).ApproveDestruction(
            pb.ApproveDestructionRequest(id=asked[0], jws=jws)
        )

    def state(self, asked: tuple[str, bytes]) -> int:
        found = self.desk(self.admin).ListDestructions(pb.ListDestructionsRequest()).destructions
        (state,) = [one.state for one in found if one.id == asked[0]]
        return int(state)


def _vault(folder: Path) -> KeysProcess:
    return on_vault(folder, **SETTINGS)


def _embedded(folder: Path) -> KeysProcess:
    return embedded(folder, **SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", [_embedded, _vault], ids=["embedded", "vault"])
def test_a_destruction_goes_on_whenever_it_was_killed(
    tmp_path: Path, make: Callable[[Path], KeysProcess]
) -> None:
    site = Site(make(tmp_path))
    try:
        session = new_key_of(site.keys("gateway"), SESSION)
        killed = 0
        while destroyed_with_a_kill(site, killed + 1, session):
            killed += 1
        assert killed >= 5
    finally:
        site.process.end()


def destroyed_with_a_kill(site: Site, number: int, session: Any) -> bool:
    """Destroy a key and be killed at the n-th change; False when there were not so many."""
    made = new_key_of(site.keys("inference"), MODEL)
    asked = site.ask()
    site.restarted(("after", "before")[number % 2], number)
    process = site.process.process
    assert process is not None
    site.approve(asked)
    until(lambda: process.poll() is not None or done(site, asked), "killed, or done")
    killed = process.poll() is not None
    site.restarted("after", 0)
    until(lambda: done(site, asked), "it goes on")
    opened = keys_pb2.OpenBranchKeyRequest(context=proto(MODEL), wrapped=made.wrapped)
    inference = site.keys("inference")
    assert reason_of(lambda: inference.OpenBranchKey(opened))[1] == "KEY_DESTROYED"
    other = keys_pb2.OpenBranchKeyRequest(context=proto(SESSION), wrapped=session.wrapped)
    assert site.keys("gateway").OpenBranchKey(other).key == session.key
    return killed


def done(site: Site, asked: tuple[str, bytes]) -> bool:
    try:
        return site.state(asked) == pb.DESTRUCTION_STATE_DONE
    except Exception:  # noqa: BLE001 - it is being killed
        return False


def new_key_of(stub: Any, context: EncryptionContext) -> Any:
    return stub.CreateBranchKey(keys_pb2.CreateBranchKeyRequest(context=proto(context)))
