"""What every provider of branch keys and certificates must do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.tls import is_current, make_csr, new_key
from sealward.seal.context import EncryptionContext
from sealward.seal.objects import seal_object
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.seal.secret import Secret
from services.keys.authority import (
    EmbeddedAuthority,
    KeystoreAuthority,
    new_authority,
    utc_now,
)
from services.keys.keystore import Keystore, open_or_create
from services.keys.keystoreformat import Authority, Content
from services.keys.profiles import (
    Lives,
    identity_to_certify,
    parse_der_request,
    parse_pem_request,
    profile_of,
)
from services.keys.providers.base import MAX_REWRAP, BranchKeys, CertificateAuthority
from services.keys.providers.embedded import EmbeddedBranchKeys
from tests.support.vault_provider import shared_provider

TD = "sealward.local"
SESSION = EncryptionContext("default", "session", "epoch-1")
LIVES = Lives(service=3600, user=86_400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Keystore]:
    secret = UnlockSecret(new_identity())
    store, _ = open_or_create(
        tmp_path,
        lambda _creating: secret,
        lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
    )
    yield store
    store.close()


# The first run on Vault builds the server.
PROVIDERS = ["embedded", pytest.param("vault", marks=pytest.mark.timeout(900))]


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BranchKeys]:
    if request.param == "vault":
        with shared_provider(tmp_path) as opened:
            yield opened.branches
    else:
        yield EmbeddedBranchKeys(request.getfixturevalue("store"))


def reason(provider: BranchKeys, context: EncryptionContext, wrapped: bytes) -> Reason:
    with pytest.raises(SealwardError) as caught:
        provider.open(context, wrapped)
    return caught.value.reason


def test_opens_what_it_made(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    assert len(key) == 32
    assert key not in wrapped
    assert provider.open(SESSION, wrapped) == key
    assert provider.create(SESSION)[0] != key
    assert provider.condition().state == "ready"


def test_binds_the_whole_context(provider: BranchKeys) -> None:
    _, wrapped = provider.create(SESSION)
    for other in (
        EncryptionContext("other", "session", "epoch-1"),
        EncryptionContext("default", "model", "epoch-1"),
        EncryptionContext("default", "session", "epoch-2"),
    ):
        assert reason(provider, other, wrapped) is Reason.SEAL_BROKEN
        provider.create(other)
        assert reason(provider, other, wrapped) is Reason.SEAL_BROKEN


def test_refuses_what_it_did_not_make(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    changed = bytearray(wrapped)
    changed[-1] ^= 1
    for forged in (
        b"",
        b"garbage",
        bytes(changed),
        wrapped[:-1],
        wrapped + b"\x00",
        # An object sealed under the branch key is not a branch key.
        seal_object(key, SESSION, bytes(32)),
    ):
        assert reason(provider, SESSION, forged) is Reason.SEAL_BROKEN


# --- versions of a key-encryption key -------------------------------------------------------------

MODEL = EncryptionContext("default", "model", "breast-cancer@1")


def test_a_rotation_wraps_under_the_new_version_and_the_old_one_opens(
    provider: BranchKeys,
) -> None:
    first, wrapped = provider.create(SESSION)
    assert provider.version_of(wrapped) == 1
    assert provider.versions("default", "session").newest == 1
    assert provider.rotate("default", "session") == 2
    second, newer = provider.create(SESSION)
    assert provider.version_of(newer) == 2
    assert provider.version_of(wrapped) == 1
    assert provider.open(SESSION, wrapped) == first
    assert provider.open(SESSION, newer) == second
    found = provider.versions("default", "session")
    assert (found.lowest, found.newest, len(found.made)) == (1, 2, 2)
    assert 0 < found.made[0] <= found.made[1]


def test_a_rotation_is_of_one_key(provider: BranchKeys) -> None:
    provider.create(SESSION)
    provider.create(MODEL)
    provider.create(EncryptionContext("other", "session", "epoch-1"))
    provider.rotate("default", "session")
    assert provider.names() == [("default", "model"), ("default", "session"), ("other", "session")]
    assert [provider.versions(*name).newest for name in provider.names()] == [1, 2, 1]


def test_a_key_that_does_not_exist(provider: BranchKeys) -> None:
    provider.create(SESSION)
    for call in (
        lambda: provider.versions("default", "model"),
        lambda: provider.rotate("default", "model"),
        lambda: provider.retire("default", "model", 1),
    ):
        with pytest.raises(SealwardError) as caught:
            call()
        assert caught.value.reason is Reason.NOT_FOUND
    assert provider.names() == [("default", "session")]


def test_rewrap_moves_keys_on_and_leaves_them_what_they_are(provider: BranchKeys) -> None:
    made = {context: provider.create(context) for context in (SESSION, MODEL)}
    for context in made:
        provider.rotate(context.tenant, context.purpose)
    moved = provider.rewrap([(context, wrapped) for context, (_, wrapped) in made.items()])
    for (context, (key, wrapped)), new in zip(made.items(), moved, strict=True):
        assert new is not None
        assert provider.version_of(new) == 2
        assert provider.open(context, new) == key
        assert provider.open(context, wrapped) == key
    assert provider.rewrap([(SESSION, moved[0] or b"")]) == moved[:1]
    assert provider.rewrap([]) == []


def test_rewrap_names_what_does_not_open_by_its_place(provider: BranchKeys) -> None:
    _, wrapped = provider.create(SESSION)
    provider.rotate("default", "session")
    changed = bytearray(wrapped)
    changed[-1] ^= 1
    answer = provider.rewrap(
        [
            (SESSION, bytes(changed)),
            (SESSION, wrapped),
            (SESSION.about("epoch-2"), wrapped),
            (MODEL, wrapped),
            (SESSION, b""),
            (SESSION, wrapped),
        ]
    )
    assert [new is not None for new in answer] == [False, True, False, False, False, True]


def test_rewrap_takes_500_at_a_time(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    provider.rotate("default", "session")
    moved = provider.rewrap([(SESSION, wrapped)] * MAX_REWRAP)
    assert {provider.open(SESSION, new or b"") for new in (moved[0], moved[-1])} == {key}
    with pytest.raises(SealwardError) as caught:
        provider.rewrap([(SESSION, wrapped)] * (MAX_REWRAP + 1))
    assert caught.value.reason is Reason.FIELD_INVALID


def test_what_is_retired_never_opens_again(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    _, other = provider.create(MODEL)
    provider.rotate("default", "session")
    (moved,) = provider.rewrap([(SESSION, wrapped)])
    assert moved is not None
    provider.rotate("default", "session")
    for _ in range(2):
        provider.retire("default", "session", 2)
        assert reason(provider, SESSION, wrapped) is Reason.SEAL_BROKEN
        assert provider.rewrap([(SESSION, wrapped)]) == [None]
        assert provider.open(SESSION, moved) == key
    found = provider.versions("default", "session")
    assert (found.lowest, found.newest, len(found.made)) == (2, 3, 2)
    assert provider.version_of(provider.create(SESSION)[1]) == 3
    assert provider.rotate("default", "session") == 4
    # Not only once: Vault keeps bounds of its own from the first time.
    for below in (3, 4):
        provider.retire("default", "session", below)
        assert provider.versions("default", "session").lowest == below
    assert provider.open(MODEL, other)


def test_the_newest_version_is_not_retired(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    provider.retire("default", "session", 1)
    with pytest.raises(SealwardError) as caught:
        provider.retire("default", "session", 2)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert provider.open(SESSION, wrapped) == key


def test_a_wrapped_key_says_its_version_but_no_forgery_opens(provider: BranchKeys) -> None:
    key, wrapped = provider.create(SESSION)
    for forged in (b"", b"garbage", wrapped[:20], seal_object(key, SESSION, bytes(32))):
        with pytest.raises(SealwardError) as caught:
            provider.version_of(forged)
        assert caught.value.reason is Reason.SEAL_BROKEN
    provider.rotate("default", "session")
    _, newer = provider.create(SESSION)
    assert reason(provider, SESSION, relabelled(provider, wrapped, newer)) is Reason.SEAL_BROKEN


def relabelled(provider: BranchKeys, wrapped: bytes, newer: bytes) -> bytes:
    """A wrapped key of version 1 that says it is of the version of a newer one."""
    for place in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[place] = ord(str(provider.version_of(newer)))
        with suppress(SealwardError):
            if provider.version_of(bytes(changed)) == provider.version_of(newer):
                return bytes(changed)
    raise AssertionError("no such place")


# --- certificates ---------------------------------------------------------------------------------


def authority(now: dt.datetime | None = None) -> EmbeddedAuthority:
    moment = now or utc_now()
    return EmbeddedAuthority((new_authority(TD, moment),), lambda: moment)


@pytest.fixture(scope="module", params=PROVIDERS)
def signer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CertificateAuthority]:
    if request.param == "vault":
        with shared_provider(tmp_path_factory.mktemp("vault")) as opened:
            yield opened.authority
    else:
        # Its steps are not taken here.
        yield authority()  # type: ignore[misc]


def leaf_of(ca: CertificateAuthority, uri: str) -> x509.Certificate:
    request = make_csr(new_key(), "spiffe://sealward.local/service/keys")
    issued = ca.issue(profile_of(parse_identity(uri), LIVES), request)
    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    assert leaf.serial_number == issued.serial
    assert int(leaf.not_valid_after_utc.timestamp()) == issued.not_after
    return leaf


@pytest.mark.parametrize(
    ("uri", "dns", "addresses", "server", "seconds"),
    [
        ("service/gateway", ["gateway.sealward.local", "localhost"], ["127.0.0.1"], True, 3600),
        ("service/audit", ["audit.sealward.local", "localhost"], ["127.0.0.1"], True, 3600),
        ("service/inference", ["inference.sealward.local"], [], True, 3600),
        ("service/keys", ["keys.sealward.local"], [], True, 3600),
        ("admin/local", [], [], False, 3600),
        ("user/alice", [], [], False, 86_400),
        ("workload/mirth", [], [], False, 86_400),
    ],
)
def test_profiles(
    signer: CertificateAuthority,
    uri: str,
    dns: list[str],
    addresses: list[str],
    server: bool,
    seconds: int,
) -> None:
    leaf = leaf_of(signer, f"spiffe://{TD}/{uri}")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{TD}/{uri}"]
    assert names.get_values_for_type(x509.DNSName) == dns
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == addresses
    assert [a.value for a in leaf.subject] == [uri.split("/")[1]]
    usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {ExtendedKeyUsageOID.CLIENT_AUTH} | (
        {ExtendedKeyUsageOID.SERVER_AUTH} if server else set()
    )
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life == dt.timedelta(seconds=seconds + 60)
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    roots = x509.load_pem_x509_certificates(signer.bundle_pem)
    leaf.verify_directly_issued_by(roots[0])
    PolicyBuilder().store(Store(roots)).build_client_verifier().verify(leaf, [])
    if server:
        PolicyBuilder().store(Store(roots)).build_server_verifier(x509.DNSName(dns[0])).verify(
            leaf, []
        )


def test_a_life_ends_with_the_authority_at_the_latest() -> None:
    begun = utc_now()
    late = begun + dt.timedelta(days=3650) - dt.timedelta(seconds=100)
    made = new_authority(TD, begun)
    issued = EmbeddedAuthority((made,), lambda: late).issue(
        profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES), make_csr(new_key(), "x")
    )
    assert issued.not_after == int(late.timestamp()) + 100
    with pytest.raises(StartupError, match="expired"):
        EmbeddedAuthority((made,), lambda: late + dt.timedelta(seconds=100))


def test_the_newest_authority_signs_and_all_are_trusted() -> None:
    old, new = new_authority(TD, utc_now()), new_authority(TD, utc_now())
    ca = EmbeddedAuthority((old, new))
    bundle = x509.load_pem_x509_certificates(ca.bundle_pem)
    assert [c.public_bytes(serialization.Encoding.DER) for c in bundle] == [
        new.certificate,
        old.certificate,
    ]
    issued = ca.issue(
        profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES), make_csr(new_key(), "x")
    )
    x509.load_pem_x509_certificate(issued.chain_pem).verify_directly_issued_by(bundle[0])


def test_an_authority_whose_parts_do_not_match_is_refused() -> None:
    one, other = new_authority(TD, utc_now()), new_authority(TD, utc_now())
    for broken in (Authority(one.key, other.certificate), Authority(Secret(b"x"), one.certificate)):
        with pytest.raises(StartupError, match="damaged"):
            EmbeddedAuthority((broken,))


# --- an authority is replaced ---------------------------------------------------------------------


@pytest.fixture(params=PROVIDERS)
def rotating(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CertificateAuthority]:
    if request.param == "vault":
        with shared_provider(tmp_path) as opened:
            yield opened.authority
    else:
        yield KeystoreAuthority(request.getfixturevalue("store"))


def states(ca: CertificateAuthority) -> list[str]:
    found = ca.authorities()
    assert b"".join(one.certificate_pem for one in found) == ca.bundle_pem
    return [one.state for one in found]


def issued_by(ca: CertificateAuthority) -> x509.Certificate:
    """Issue a leaf; it is signed by the authority that says so, and by no other of the bundle."""
    issued = ca.issue(
        profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES), make_csr(new_key(), "x")
    )
    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    (signs,) = (one for one in ca.authorities() if one.state == "issuing")
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(signs.certificate_pem))
    # Whoever has the bundle sees that it is of the authority that signs.
    first = x509.load_pem_x509_certificate(ca.bundle_pem)
    leaf.verify_directly_issued_by(first)
    assert is_current(issued.chain_pem, ca.bundle_pem)
    return leaf


def accepts(ca: CertificateAuthority, leaf: x509.Certificate) -> bool:
    trusted = Store(x509.load_pem_x509_certificates(ca.bundle_pem))
    try:
        PolicyBuilder().store(trusted).build_client_verifier().verify(leaf, [])
    except VerificationError:
        return False
    return True


def test_an_authority_is_replaced_in_three_steps(rotating: CertificateAuthority) -> None:
    ca = rotating
    first = issued_by(ca)
    assert states(ca) == ["issuing"]
    for _ in range(2):
        ca.announce()
        assert states(ca) == ["issuing", "next"]
        assert issued_by(ca).issuer == first.issuer
    before = ca.bundle_pem
    chain = first.public_bytes(serialization.Encoding.PEM)
    for _ in range(2):
        ca.adopt()
        assert states(ca) == ["issuing", "leaving"]
    assert ca.bundle_pem != before
    assert is_current(chain, before)
    assert not is_current(chain, ca.bundle_pem)
    second = issued_by(ca)
    assert accepts(ca, first)
    assert accepts(ca, second)
    for _ in range(2):
        ca.drop()
        assert states(ca) == ["issuing"]
    assert not accepts(ca, first)
    assert accepts(ca, second)
    ca.announce()
    assert accepts(ca, issued_by(ca))


def test_steps_without_the_one_before_change_nothing(rotating: CertificateAuthority) -> None:
    bundle = rotating.bundle_pem
    rotating.adopt()
    rotating.drop()
    assert rotating.bundle_pem == bundle
    rotating.announce()
    rotating.drop()
    assert states(rotating) == ["issuing", "next"]


def request_with(key: object, *, name: str = "x") -> x509.CertificateSigningRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_only_p256_is_signed(signer: CertificateAuthority, key: object) -> None:
    with pytest.raises(SealwardError) as caught:
        signer.issue(
            profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES), request_with(key)
        )
    assert caught.value.reason is Reason.CERTIFICATE_REQUEST_INVALID


def test_a_request_that_its_key_did_not_sign_is_refused(signer: CertificateAuthority) -> None:
    good = make_csr(new_key(), "x").public_bytes(serialization.Encoding.DER)
    forged = bytearray(good)
    forged[-1] ^= 1
    with pytest.raises(SealwardError) as caught:
        signer.issue(
            profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES),
            parse_der_request(bytes(forged)),
        )
    assert caught.value.reason is Reason.CERTIFICATE_REQUEST_INVALID


def test_names_of_the_request_are_not_looked_at(signer: CertificateAuthority) -> None:
    wanted = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(f"spiffe://{TD}/service/keys"), x509.DNSName("evil")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keys")]))
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(new_key(), hashes.SHA256())
    )
    issued = signer.issue(profile_of(parse_identity(f"spiffe://{TD}/user/alice"), LIVES), request)
    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://{TD}/user/alice"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("parse", [parse_der_request, parse_pem_request])
@pytest.mark.parametrize("data", [b"", b"garbage", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_what_is_not_a_request(parse: object, data: bytes) -> None:
    with pytest.raises(SealwardError) as caught:
        parse(data)  # type: ignore[operator]
    assert caught.value.reason is Reason.CERTIFICATE_REQUEST_INVALID


@pytest.mark.parametrize(
    ("caller", "named", "certified"),
    [
        ("service/audit", "", "service/audit"),
        ("service/gateway", "", "service/gateway"),
        ("service/gateway", f"spiffe://{TD}/user/alice", "user/alice"),
        ("service/gateway", f"spiffe://{TD}/workload/mirth", "workload/mirth"),
    ],
)
def test_whom_a_certificate_is_for(caller: str, named: str, certified: str) -> None:
    who = identity_to_certify(parse_identity(f"spiffe://{TD}/{caller}"), named)
    assert who.uri == f"spiffe://{TD}/{certified}"


@pytest.mark.parametrize(
    ("caller", "named", "expected"),
    [
        ("service/gateway", f"spiffe://{TD}/service/audit", Reason.IDENTITY_FORBIDDEN),
        ("service/gateway", f"spiffe://{TD}/service/gateway", Reason.IDENTITY_FORBIDDEN),
        ("service/gateway", f"spiffe://{TD}/admin/local", Reason.IDENTITY_FORBIDDEN),
        ("service/gateway", "spiffe://other.local/user/alice", Reason.IDENTITY_FORBIDDEN),
        ("service/gateway", "spiffe://sealward.local/root/x", Reason.FIELD_INVALID),
        ("service/gateway", "alice", Reason.FIELD_INVALID),
        ("service/audit", f"spiffe://{TD}/user/alice", Reason.IDENTITY_FORBIDDEN),
        ("service/inference", f"spiffe://{TD}/service/inference", Reason.IDENTITY_FORBIDDEN),
        ("admin/local", f"spiffe://{TD}/user/alice", Reason.IDENTITY_FORBIDDEN),
        ("user/alice", f"spiffe://{TD}/user/bob", Reason.IDENTITY_FORBIDDEN),
    ],
)
def test_whom_a_caller_may_not_name(caller: str, named: str, expected: Reason) -> None:
    with pytest.raises(SealwardError) as caught:
        identity_to_certify(parse_identity(f"spiffe://{TD}/{caller}"), named)
    assert caught.value.reason is expected
    assert named not in caught.value.message


@pytest.mark.parametrize("uri", ["service/redis", "admin/remote"])
def test_there_are_no_other_services_or_administrators(uri: str) -> None:
    with pytest.raises(SealwardError) as caught:
        profile_of(parse_identity(f"spiffe://{TD}/{uri}"), LIVES)
    assert caught.value.reason is Reason.IDENTITY_FORBIDDEN
