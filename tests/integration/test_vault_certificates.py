"""TLS with a real Vault, logins by certificate, and the CA in it."""

from __future__ import annotations

import datetime as dt
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.tls import Credentials, Material, key_to_pem, load_material, make_csr, new_key
from sealward.seal.context import EncryptionContext
from services.keys.profiles import Lives, profile_of
from services.keys.providers.base import CertificateAuthority as Signer
from services.keys.providers.vault.config import ClientCertificate, VaultConfig
from services.keys.providers.vault.pki import VaultAuthority
from services.keys.providers.vault.setup import Administrator
from services.keys.providers.vault.shredder import Shredder
from tests.conftest import CertificateAuthority
from tests.support.vault import VaultServer, shared
from tests.support.vault_provider import TD, opened, plan_of, set_up, target_of

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)

SESSION = EncryptionContext("default", "session", "epoch-1")
KEYS = f"spiffe://{TD}/service/keys"


@pytest.fixture(scope="module")
def tls_server(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority
) -> Iterator[VaultServer]:
    folder = tmp_path_factory.mktemp("vault")
    material = authority.issue(dns=("vault.test",))
    files = (folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    for path, data in zip(
        files, (material.chain_pem, material.key_pem, authority.pem), strict=True
    ):
        write_private(path, data)
    server = VaultServer(folder, tls=files).start()
    yield server
    server.stop()


def with_certificate(
    folder: Path, server: VaultServer, ca: CertificateAuthority, material: Material
) -> VaultConfig:
    """A deployment that certificates of a CA may log in to, and one of them."""
    plan = plan_of(server, login_ca=ca.pem.decode())
    admin = Administrator(target_of(server, timeout=20.0), server.token)
    admin.set_up(plan)
    admin.close()
    login = ClientCertificate(folder / "client.pem", folder / "client-key.pem")
    write_private(login.cert_file, material.chain_pem)
    write_private(login.key_file, material.key_pem)
    return VaultConfig(target_of(server, certificate=login), login, plan.names)


def test_vault_is_verified_by_the_named_ca_alone(
    tls_server: VaultServer,
    tmp_path: Path,
    authority: CertificateAuthority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(CertificateAuthority("another").pem)
    config = set_up(tmp_path, tls_server)
    # Libraries would take these before what they are told.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    with opened(tmp_path, tls_server, config) as found:
        assert found.branches.create(SESSION)
    for ca_file in (other, None):
        foreign = replace(config, target=replace(config.target, ca_file=ca_file))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(config.target.ca_file))
        with (
            pytest.raises(Exception, match="TLS with Vault fails"),
            opened(tmp_path, tls_server, foreign),
        ):
            pass


def test_a_login_by_certificate(
    tls_server: VaultServer, tmp_path: Path, authority: CertificateAuthority
) -> None:
    config = with_certificate(tmp_path, tls_server, authority, authority.issue(KEYS))
    with opened(tmp_path, tls_server, config) as found:
        key, wrapped = found.branches.create(SESSION)
        # A renewed certificate is there; the next login shows it.
        renewed = authority.issue(KEYS)
        write_private(config.login.cert_file, renewed.chain_pem)  # type: ignore[union-attr]
        write_private(config.login.key_file, renewed.key_pem)  # type: ignore[union-attr]
        token = found.session._token
        assert token is not None
        tls_server.ask("post", "auth/token/revoke", {"token": token.value.reveal().decode()})
        assert found.branches.open(SESSION, wrapped) == key
        assert found.session.logins == 2


def test_another_certificate_does_not_log_in(
    tls_server: VaultServer, tmp_path: Path, authority: CertificateAuthority
) -> None:
    for at, material in enumerate(
        (
            authority.issue(f"spiffe://{TD}/service/audit"),
            authority.issue(f"spiffe://{TD}/user/keys"),
            authority.issue(dns=("keys",)),
            CertificateAuthority("another").issue(KEYS),
        )
    ):
        folder = tmp_path / str(at)
        folder.mkdir()
        config = with_certificate(folder, tls_server, authority, material)
        with (
            pytest.raises(StartupError, match="refuses the login"),
            opened(folder, tls_server, config),
        ):
            pass


def test_a_private_key_that_others_can_read_is_not_used(
    tls_server: VaultServer, tmp_path: Path, authority: CertificateAuthority
) -> None:
    config = with_certificate(tmp_path, tls_server, authority, authority.issue(KEYS))
    config.login.key_file.chmod(0o640)  # type: ignore[union-attr]
    with pytest.raises(StartupError, match="open to others"), opened(tmp_path, tls_server, config):
        pass


# --- the CA ---------------------------------------------------------------------------------------


def issue(ca: Signer, uri: str) -> Material:
    key = new_key()
    issued = ca.issue(profile_of(parse_identity(uri), Lives(3600, 86_400)), make_csr(key, "x"))
    return load_material(key_to_pem(key), issued.chain_pem, ca.bundle_pem)


def intermediate(csr: str, root: CertificateAuthority) -> str:
    """A CA certificate of a hospital's root for the engine's key."""
    request = x509.load_pem_x509_csr(csr.encode())
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sealward below it")]))
        .issuer_name(root.name)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=60))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False
        )
        .sign(root.key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_a_ca_below_a_hospitals_root_is_trusted_without_the_root(tmp_path: Path) -> None:
    server, root = shared(), CertificateAuthority("hospital root")
    with opened(tmp_path, server) as found:
        pki = found.session.config.names.pki
        made = server.ask("post", f"{pki}/intermediate/generate/internal", {
            "common_name": "Sealward below it", "key_type": "ec", "key_bits": 256,
        })  # fmt: skip
        chain = intermediate(made["data"]["csr"], root) + root.pem.decode()
        taken = server.ask("post", f"{pki}/intermediate/set-signed", {"certificate": chain})
        mine = next(name for name, key in taken["data"]["mapping"].items() if key)
        server.ask("post", f"{pki}/config/issuers", {"default": mine})
        ca = VaultAuthority(found.session, Shredder(found.session.wire, found.session.config), TD)
        ca.load()
        states = [one.state for one in ca.authorities()]
        assert states == ["issuing", "leaving"]
        bundle = x509.load_pem_x509_certificates(ca.bundle_pem)
        assert root.certificate not in bundle
        audit = issue(ca, f"spiffe://{TD}/service/audit")
        gateway = issue(ca, f"spiffe://{TD}/service/gateway")
        assert greets(audit, gateway)
        # What the root certifies elsewhere opens nothing here.
        stranger = root.issue(f"spiffe://{TD}/service/gateway", bundle=ca.bundle_pem)
        assert not greets(audit, stranger)


def greets(server: Material, client: Material) -> bool:
    """True when the two talk by gRPC and by TLS as our other listeners do it."""
    handler = grpc.method_handlers_generic_handler(
        "t.T", {"Hi": grpc.unary_unary_rpc_method_handler(lambda request, _: request)}
    )
    listener = grpc.server(ThreadPoolExecutor(2))
    listener.add_generic_rpc_handlers((handler,))
    port = listener.add_secure_port("127.0.0.1:0", Credentials(server).server())
    listener.start()
    try:
        with grpc.secure_channel(
            f"127.0.0.1:{port}",
            Credentials(client).channel(),
            (("grpc.ssl_target_name_override", f"audit.{TD}"),),
        ) as channel:
            answer: bytes = channel.unary_unary("/t.T/Hi")(b"hi", timeout=5)
            by_grpc = answer == b"hi"
    except grpc.RpcError:
        by_grpc = False
    finally:
        listener.stop(None)
    by_tls = shakes_hands(server, client)
    assert by_grpc == by_tls
    return by_grpc


def shakes_hands(server: Material, client: Material) -> bool:
    import socket

    ours, theirs = socket.socketpair()
    outcome: list[bool] = []

    def serve() -> None:
        context = Credentials(server).ssl_context(ssl.Purpose.CLIENT_AUTH)
        try:
            with context.wrap_socket(theirs, server_side=True) as secure:
                outcome.append(secure.recv(2) == b"hi")
        except (ssl.SSLError, OSError):
            outcome.append(False)

    thread = threading.Thread(target=serve)
    thread.start()
    context = Credentials(client).ssl_context(ssl.Purpose.SERVER_AUTH)
    try:
        with context.wrap_socket(ours, server_hostname=f"audit.{TD}") as secure:
            secure.send(b"hi")
            thread.join()
    except (ssl.SSLError, OSError):
        ours.close()
        thread.join()
    return outcome == [True]


def test_another_process_takes_the_next_ca_and_it_is_noticed(tmp_path: Path) -> None:
    server = shared()
    now = [0.0]
    with opened(tmp_path, server) as found:
        shredder = Shredder(found.session.wire, found.session.config)
        ca = VaultAuthority(found.session, shredder, TD, monotonic=lambda: now[0])
        ca.load()
        before = ca.bundle_pem
        found.authority.announce()
        assert ca.bundle_pem == before
        now[0] = 31.0
        assert len(x509.load_pem_x509_certificates(ca.bundle_pem)) == 2
        found.authority.adopt()
        # A leaf of an authority that is not known to sign yet is no reason to refuse.
        issue(ca, f"spiffe://{TD}/service/audit")
        assert ca.authorities() == found.authority.authorities()


def test_a_role_that_was_changed_certifies_no_other_name(tmp_path: Path) -> None:
    """The answer is looked at: more names than ours, an authority, another key."""
    server = shared()
    with opened(tmp_path, server) as found:
        role = f"{found.session.config.names.pki}/roles/service-audit"
        good = server.ask("get", role)["data"]
        issue(found.authority, f"spiffe://{TD}/service/audit")
        server.ask("post", role, {**good, "use_csr_common_name": True, "allow_any_name": True})
        with pytest.raises(SealwardError) as caught:
            issue(found.authority, f"spiffe://{TD}/service/audit")
        assert caught.value.reason is Reason.KEYSTORE_UNAVAILABLE
        server.ask("post", role, good)
        issue(found.authority, f"spiffe://{TD}/service/audit")


@pytest.mark.parametrize(
    "options",
    [
        {"type": "aes256-gcm96", "derived": False},
        {"type": "aes256-gcm96", "derived": True, "exportable": True},
        {"type": "chacha20-poly1305", "derived": True},
        {"type": "aes256-gcm96", "derived": True, "convergent_encryption": True},
    ],
)
def test_a_key_that_is_not_what_it_must_be_is_not_used(
    tmp_path: Path, options: dict[str, object]
) -> None:
    server = shared()
    with opened(tmp_path, server) as found:
        server.ask("post", found.session.config.names.key("kek-default.session"), options)
        errors = []
        with pytest.raises(SealwardError) as caught:
            found.branches.create(SESSION)
        errors.append(caught.value)
        with pytest.raises(SealwardError) as caught:
            found.branches.open(SESSION, b"vault:v1:" + b"A" * 80)
        errors.append(caught.value)
        for error in errors:
            assert error.reason is Reason.KEYSTORE_UNAVAILABLE
            assert "derived" in error.message


def test_without_the_shredder_nothing_is_destroyed(tmp_path: Path) -> None:
    server = shared()
    config = replace(set_up(tmp_path, server), shredder=None)
    with opened(tmp_path, server, config) as found:
        key, wrapped = found.branches.create(SESSION)
        found.branches.rotate("default", "session")
        found.authority.announce()
        found.authority.adopt()
        with pytest.raises(SealwardError, match="SHREDDER") as caught:
            found.branches.retire("default", "session", 2)
        assert caught.value.reason is Reason.NOT_SUPPORTED
        with pytest.raises(SealwardError, match="SHREDDER") as caught:
            found.authority.drop()
        assert caught.value.reason is Reason.NOT_SUPPORTED
        assert found.branches.open(SESSION, wrapped) == key
