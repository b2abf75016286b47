"""A service follows the trust bundle, and renews when it has to; a real listener answers."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Any

import grpc
import pytest

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import (
    KeysServiceServicer,
    add_KeysServiceServicer_to_server,
)
from sealward.kit.channel import Channels
from sealward.kit.logging import get_logger
from sealward.kit.tls import Credentials, is_current
from sealward.kit.trustwatch import TrustWatch
from tests.conftest import CertificateAuthority

SERVER = "spiffe://sealward.local/service/keys"
CLIENT = "spiffe://sealward.local/service/audit"


class Keys(KeysServiceServicer):  # type: ignore[misc] # the rest is not asked here
    def __init__(self, bundle: bytes) -> None:
        self.bundle = bundle
        self.renew_before = 0
        self.asked: list[keys_pb2.GetTrustBundleRequest] = []

    def GetTrustBundle(self, request: Any, context: Any) -> keys_pb2.GetTrustBundleResponse:
        self.asked.append(request)
        return keys_pb2.GetTrustBundleResponse(
            bundle_pem=self.bundle.decode(), renew_before=self.renew_before
        )


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    def __init__(self, authority: CertificateAuthority) -> None:
        self.authority = authority
        self.next = CertificateAuthority("the next one")
        self.keys = Keys(authority.pem)  # type: ignore[abstract]
        both = authority.pem + self.next.pem
        own = Credentials(authority.issue(SERVER, dns=("keys.sealward.local",), bundle=both))
        self.server = grpc.server(ThreadPoolExecutor(2))
        add_KeysServiceServicer_to_server(self.keys, self.server)
        port = self.server.add_secure_port("127.0.0.1:0", own.server())
        self.server.start()
        self.own = own
        self.credentials = Credentials(authority.issue(CLIENT))
        self.renewals = 0
        self.clock = Clock()
        self.lines = io.StringIO()
        self.channels = Channels(self.credentials, f"127.0.0.1:{port}", "keys.sealward.local")
        self.watch = TrustWatch(
            self.channels,
            self.credentials,
            self.renew,
            threading.Event(),
            get_logger("audit", self.lines),
            every=1.0,
            clock=self.clock,
        )

    def renew(self) -> None:
        self.renewals += 1


@pytest.fixture
def rig(authority: CertificateAuthority) -> Iterator[Rig]:
    made = Rig(authority)
    yield made
    made.channels.close()
    made.server.stop(None)


def test_nothing_new_changes_nothing(rig: Rig) -> None:
    before = rig.credentials.material
    generation = rig.channels.generation
    for _ in range(3):
        rig.watch.ask()
    assert rig.credentials.material is before
    assert (rig.renewals, rig.channels.generation) == (0, generation)
    (said, *_) = rig.keys.asked
    assert said.bundle_sha256 == sha256(rig.authority.pem).digest()
    assert said.certificate_current


def test_a_changed_bundle_goes_into_use_and_is_told(rig: Rig) -> None:
    """Both authorities are trusted: the old one's certificates and the new one's."""
    rig.keys.bundle = rig.authority.pem + rig.next.pem
    rig.watch.ask()
    assert rig.credentials.material.bundle_pem == rig.keys.bundle
    assert rig.renewals == 0
    rig.watch.ask()
    assert rig.keys.asked[-1].bundle_sha256 == sha256(rig.keys.bundle).digest()
    # Keys shows a certificate of the new one from now on: the next handshake trusts it.
    both = rig.keys.bundle
    rig.own.install(rig.next.issue(SERVER, dns=("keys.sealward.local",), bundle=both))
    generation = rig.channels.generation
    rig.credentials.install(rig.authority.issue(CLIENT, bundle=both))
    assert rig.channels.generation == generation + 1
    rig.watch.ask()
    assert len(rig.keys.asked) == 3


def test_a_certificate_of_an_authority_that_leaves_is_renewed(rig: Rig) -> None:
    rig.keys.bundle = rig.next.pem + rig.authority.pem
    rig.watch.ask()
    # Once, not at every look while the renewal is under way.
    renewals = [rig.renewals]
    rig.watch.ask()
    renewals.append(rig.renewals)
    rig.clock.now += 30
    rig.watch.ask()
    renewals.append(rig.renewals)
    rig.credentials.install(rig.next.issue(CLIENT, bundle=rig.keys.bundle))
    rig.watch.ask()
    rig.watch.ask()
    renewals.append(rig.renewals)
    assert renewals == [1, 1, 2, 2]
    current = [said.certificate_current for said in rig.keys.asked]
    assert current == [True, False, False, True, True]


def test_what_was_made_before_a_time_is_renewed(rig: Rig) -> None:
    rig.keys.renew_before = int(rig.credentials.material.made) + 1
    rig.watch.ask()
    assert rig.renewals == 1
    material = rig.credentials.material
    rig.credentials.install(replace(material, not_before=material.not_before + 2))
    rig.watch.ask()
    rig.clock.now += 60
    rig.watch.ask()
    assert rig.renewals == 1


def test_a_bundle_that_cannot_be_used_is_not_taken(rig: Rig) -> None:
    before = rig.credentials.material
    for bundle in (b"", b"not a certificate"):
        rig.keys.bundle = bundle
        rig.watch.ask()
        assert rig.credentials.material is before
    assert rig.renewals == 0


def test_keys_away_changes_nothing_and_is_told_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealward.kit.trustwatch._CALL_SECONDS", 0.2)
    before = rig.credentials.material
    rig.server.stop(None).wait(10)
    for _ in range(3):
        rig.watch.ask()
    assert rig.credentials.material is before
    assert rig.lines.getvalue().count("trust-bundle.lost") == 1


def test_which_authority_a_certificate_is_of(rig: Rig) -> None:
    one, two = rig.authority, rig.next
    chain = one.issue(CLIENT).chain_pem
    assert is_current(chain, one.pem)
    assert is_current(chain, one.pem + two.pem)
    assert not is_current(chain, two.pem + one.pem)
