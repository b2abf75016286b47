"""A real keys process: enrolment, branch keys, certificates, refusals, damage, restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.keys.v1 import keys_pb2, trust_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll, write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.kit.reasons import Reason
from sealward.kit.tls import Credentials, key_to_pem, load_material, make_csr, new_key
from sealward.seal.context import EncryptionContext
from sealward.seal.rootkey import new_identity
from tests.support.keys_process import TD, KeysProcess, embedded, on_vault, proto, reason_of
from tests.support.waiting import until

SESSION = EncryptionContext("default", "session", "epoch-1")
MODEL = EncryptionContext("default", "model", "breast-cancer@1")


# The first run on Vault builds the server.
@pytest.fixture(params=["embedded", pytest.param("vault", marks=pytest.mark.timeout(900))])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., KeysProcess]]:
    made: list[KeysProcess] = []

    def maker(**settings: Any) -> KeysProcess:
        made.append((on_vault if request.param == "vault" else embedded)(tmp_path, **settings))
        return made[-1]

    yield maker
    for process in made:
        process.end()


@pytest.fixture
def make_embedded(tmp_path: Path) -> Iterator[Callable[..., KeysProcess]]:
    made: list[KeysProcess] = []

    def maker(**settings: Any) -> KeysProcess:
        made.append(embedded(tmp_path, **settings))
        return made[-1]

    yield maker
    for process in made:
        process.end()


def request_for(spiffe_id: str = "") -> keys_pb2.IssueCertificateRequest:
    csr = make_csr(new_key(), "spiffe://sealward.local/service/keys")
    return keys_pb2.IssueCertificateRequest(csr=csr.public_bytes(Encoding.DER), spiffe_id=spiffe_id)


def uris(pem: bytes) -> list[str]:
    leaf = x509.load_pem_x509_certificate(pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def test_who_may_do_what(make: Callable[..., KeysProcess]) -> None:
    keys = make().start()
    gateway, inference, audit = (keys.stub(n) for n in ("gateway", "inference", "audit"))

    # Branch keys: made and opened under the same context, refused under any other.
    made = inference.CreateBranchKey(keys_pb2.CreateBranchKeyRequest(context=proto(MODEL)))
    assert len(made.key) == 32
    assert made.key not in made.wrapped
    assert (made.lease.soft_seconds, made.lease.hard_seconds) == (300, 900)
    opened = inference.OpenBranchKey(
        keys_pb2.OpenBranchKeyRequest(context=proto(MODEL), wrapped=made.wrapped)
    )
    assert opened.key == made.key
    other = keys_pb2.OpenBranchKeyRequest(
        context=proto(MODEL.about("breast-cancer@2")), wrapped=made.wrapped
    )
    broken = (grpc.StatusCode.DATA_LOSS, "SEAL_BROKEN")
    assert reason_of(lambda: inference.OpenBranchKey(other)) == broken

    # A service has keys of its own purposes alone.
    forbidden = (grpc.StatusCode.PERMISSION_DENIED, "IDENTITY_FORBIDDEN")
    foreign = keys_pb2.OpenBranchKeyRequest(context=proto(MODEL), wrapped=made.wrapped)
    for stub in (gateway, audit):
        assert reason_of(lambda stub=stub: stub.OpenBranchKey(foreign)) == forbidden  # type: ignore[misc]
    wrong = keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
    assert reason_of(lambda: audit.CreateBranchKey(wrong)) == forbidden

    # What is malformed names its field.
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    empty = keys_pb2.OpenBranchKeyRequest(context=proto(MODEL))
    assert reason_of(lambda: inference.OpenBranchKey(empty)) == invalid
    nothing = keys_pb2.CreateBranchKeyRequest()
    assert reason_of(lambda: inference.CreateBranchKey(nothing)) == invalid

    # Certificates: one's own name; the gateway may name a user or workload, nobody else anybody.
    own = audit.IssueCertificate(request_for())
    assert uris(own.certificate_pem.encode()) == [f"spiffe://{TD}/service/audit"]
    for taken in ("service/audit", "service/keys", "service/gateway", "admin/local"):
        asked = request_for(f"spiffe://{TD}/{taken}")
        assert reason_of(lambda asked=asked: gateway.IssueCertificate(asked)) == forbidden  # type: ignore[misc]
    elsewhere = request_for("spiffe://other.local/user/alice")
    assert reason_of(lambda: gateway.IssueCertificate(elsewhere)) == forbidden
    alice = request_for(f"spiffe://{TD}/user/alice")
    assert reason_of(lambda: audit.IssueCertificate(alice)) == forbidden
    garbage = keys_pb2.IssueCertificateRequest(csr=b"garbage")
    assert reason_of(lambda: gateway.IssueCertificate(garbage)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "CERTIFICATE_REQUEST_INVALID",
    )

    # The gateway takes back what users have, and nothing else.
    trust = TrustServiceStub(keys.channels("gateway").get())
    why = trust_pb2.REVOCATION_REASON_PRIVILEGE_WITHDRAWN
    for one in (f"spiffe://{TD}/service/audit", f"spiffe://{TD}/admin/local"):
        asked_for = trust_pb2.RevokeRequest(spiffe_id=one, reason=why)
        assert reason_of(lambda asked=asked_for: trust.Revoke(asked)) == forbidden  # type: ignore[misc]
    by_serial = trust_pb2.RevokeRequest(serial="ab", reason=why)
    assert reason_of(lambda: trust.Revoke(by_serial)) == forbidden
    gateway.IssueCertificate(request_for(f"spiffe://{TD}/user/bob"))
    leaving = trust_pb2.RevokeRequest(spiffe_id=f"spiffe://{TD}/user/bob", reason=why)
    assert len(trust.Revoke(leaving).revoked) == 1

    # A user's certificate opens nothing here; the administrator may read the status.
    key = new_key()
    issued = gateway.IssueCertificate(
        keys_pb2.IssueCertificateRequest(
            csr=make_csr(key, "alice").public_bytes(Encoding.DER),
            spiffe_id=f"spiffe://{TD}/user/alice",
        )
    )
    user = Credentials(
        load_material(key_to_pem(key), issued.certificate_pem.encode(), issued.bundle_pem.encode())
    )
    stranger = KeysServiceStub(Channels(user, keys.address, f"keys.{TD}").get())
    for call in (
        lambda: stranger.CreateBranchKey(wrong),
        lambda: stranger.OpenBranchKey(foreign),
        lambda: stranger.IssueCertificate(request_for()),
        lambda: stranger.GetTrustBundle(keys_pb2.GetTrustBundleRequest()),
        lambda: stranger.GetStatus(keys_pb2.GetStatusRequest()),
    ):
        assert reason_of(call) == forbidden
    admin = keys.stub("admin")
    status = admin.GetStatus(keys_pb2.GetStatusRequest())
    provider = keys.settings.get("PROVIDER", "embedded")
    assert (status.provider, status.state, status.single_host) == (provider, "ready", True)
    assert reason_of(lambda: admin.CreateBranchKey(wrong)) == forbidden

    # Everything is in the records, refusals too; no key is anywhere.
    keys.end()
    records = keys.events()
    text = b"\n".join(records)
    for event in (b"keys.keystore-create", b"keys.certificate", b"keys.branch-create"):
        assert event in text
    assert any(b"access.denied" in r and b"alice" in r for r in records)
    assert sum(b"keys.branch-open" in r and b"denied" in r for r in records) == 3
    assert any(b"SEAL_BROKEN" in r for r in records)
    on_disk = [path for path in keys.folder.rglob("*") if path.is_file()]
    for path in on_disk:
        content = path.read_bytes()
        assert made.key not in content
        assert path.suffix == ".log" or b"BEGIN PRIVATE" not in content
        assert path.stat().st_mode & 0o077 == 0 or path.suffix == ".log"


def test_branch_keys_survive_kill_and_the_ring_recovers(make: Callable[..., KeysProcess]) -> None:
    """Keys down: leases serve to the hard limit, then nothing does; recovery needs nobody."""
    keys = make(LEASE_SOFT_SECONDS=1, LEASE_HARD_SECONDS=2).start()
    told: list[bool] = []
    ring = KeyRing(KeysServiceSource(keys.channels("gateway")), on_ready=told.append)
    try:
        branch = ring.create(SESSION)
        sealed = branch.seal(b"a session", "a" * 64)
        keys.kill()
        assert branch.open(sealed, "a" * 64) == b"a session"
        until(lambda: not branch.live, "it happens")
        with pytest.raises(SealwardError) as caught:
            branch.open(sealed, "a" * 64)
        assert caught.value.reason is Reason.KEYS_UNAVAILABLE
        keys.start()
        until(lambda: branch.live, "it happens")
        assert branch.open(sealed, "a" * 64) == b"a session"
        until(lambda: told[-1:] == [True], "it happens")
        assert False in told

        # What it says of a key over the wire is told as it is.
        with pytest.raises(SealwardError) as caught:
            ring.open(SESSION.about("epoch-2"), branch.wrapped)
        assert caught.value.reason is Reason.SEAL_BROKEN
        with pytest.raises(SealwardError) as caught:
            ring.create(MODEL)
        assert caught.value.reason is Reason.IDENTITY_FORBIDDEN
    finally:
        ring.close()


def test_its_own_certificate_is_renewed_while_it_serves(make: Callable[..., KeysProcess]) -> None:
    """A life of 16 s is renewed after 8 s; a client notices nothing."""
    keys = make(CERTIFICATE_SECONDS=16).start()
    stub = keys.stub("audit")
    until(lambda: keys.lines("certificate.renewed") >= 1, "it happens")
    assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"


def test_enrolment_waits_for_a_service_that_is_not_there_yet(
    make: Callable[..., KeysProcess],
) -> None:
    keys = make()
    with pytest.raises(StartupError, match="is the keys service running"):
        enroll(keys.enroll_dir, "audit", 0.05)
    keys.start()
    assert uris(keys.material("audit").chain_pem) == [f"spiffe://{TD}/service/audit"]


def test_what_is_broken_refuses_the_start_with_one_line(
    make_embedded: Callable[..., KeysProcess],
) -> None:
    make = make_embedded
    keys = make().start()
    keys.end()
    sealed = (keys.keystore / "keystore.sealed").read_bytes()

    def replace(name: str, data: bytes) -> None:
        write_private(keys.keystore / name, data)

    flipped = bytearray(sealed)
    flipped[len(flipped) // 2] ^= 1
    replace("keystore.sealed", bytes(flipped))
    assert "keystore.sealed is damaged" in keys.refuses_to_start()

    replace("keystore.sealed", sealed)

    good = keys.unlock.read_bytes()
    write_private(keys.unlock, new_identity().encode())
    assert "wrong unlock secret" in keys.refuses_to_start()
    write_private(keys.unlock, good)

    keys.settings = {"UNLOCK_FILE": "", "TRUST_DOMAIN": TD}
    assert "SEALWARD_KEYS_UNLOCK_FILE" in keys.refuses_to_start()
    keys.settings = {}

    # And with everything back in place it starts, once at a time.
    keys.start()
    beside = make()
    beside.log = keys.folder / "beside.log"
    assert "in use by another process" in beside.refuses_to_start()
