"""Join tokens: once, for one identity, for a short while; and the folder of who joined."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.keys.v1 import enroll_pb2
from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Identity, parse_identity, peer_from_certificate
from sealward.kit.joining import (
    IdentityFolder,
    JoinToken,
    format_token,
    parse_token,
    read_token_file,
    spki_sha256,
)
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key
from sealward.seal.rootkey import UnlockSecret, new_identity
from services.keys.authority import KeystoreAuthority, new_authority, utc_now
from services.keys.joining import JoinTokens
from services.keys.keystore import open_or_create
from services.keys.keystoreformat import Content
from services.keys.profiles import Lives, profile_of
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.register import Register
from services.keys.revocations import Issuance, RevocationList

TD = "sealward.local"
PACS = parse_identity(f"spiffe://{TD}/workload/pacs")
LIVES = Lives(3600, 86_400)


class Desk:
    """Tokens over a real register, keystore and authority."""

    def __init__(self, folder: Path) -> None:
        self.now = utc_now().timestamp()
        secret = UnlockSecret(new_identity())
        self.store, _ = open_or_create(
            folder,
            lambda _creating: secret,
            lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
        )
        self.register = Register(folder / "register.sqlite")
        self.revocations = RevocationList(
            self.register, EmbeddedBranchKeys(self.store), Revocations(), lambda: self.now
        )
        self.revocations.load()
        self.authority = KeystoreAuthority(self.store)
        self.issuance = Issuance(self.authority, self.register, self.revocations, lambda: self.now)
        self.material = self.issue(parse_identity(f"spiffe://{TD}/service/keys"))
        self.tokens = JoinTokens(
            self.register, self.issuance, LIVES, TD, lambda: self.material, lambda: self.now
        )
        self.told: list[str] = []

    def issue(self, identity: Identity) -> Material:
        key = new_key()
        issued = self.issuance.issue(profile_of(identity, LIVES), make_csr(key, "x"))
        return load_material(key_to_pem(key), issued.chain_pem, self.issuance.bundle_pem)

    def ask(self, token: bytes, **changes: Any) -> enroll_pb2.EnrollResponse:
        request = {
            "token": token,
            "spiffe_id": PACS.uri,
            "ca_spki_sha256": spki_sha256(self.tokens.authority()),
            "csr": make_csr(new_key(), "x").public_bytes(Encoding.DER),
            **changes,
        }
        return self.tokens.trade(enroll_pb2.EnrollRequest(**request), self.told.append)[1]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.register.close()
    made.store.close()


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def test_a_token_is_good_once(desk: Desk) -> None:
    token, ends = desk.tokens.make(PACS, 300)
    assert (len(token), ends) == (32, int(desk.now) + 300)
    answer = desk.ask(token)
    peer = peer_from_certificate(answer.certificate_pem.encode(), "")
    assert peer.identity == PACS
    assert desk.register.find(f"{peer.serial:x}") is not None
    assert refusal(lambda: desk.ask(token)) is Reason.JOIN_TOKEN_USED
    assert desk.told == [PACS.uri, PACS.uri]


def test_the_token_itself_is_nowhere(desk: Desk, tmp_path: Path) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    desk.ask(token)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert token not in path.read_bytes()


def test_a_token_expires(desk: Desk) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    other, _ = desk.tokens.make(PACS, 300)
    desk.now += 299
    desk.ask(other)
    desk.now += 1
    assert refusal(lambda: desk.ask(token)) is Reason.JOIN_TOKEN_EXPIRED
    desk.now -= 100
    assert refusal(lambda: desk.ask(token)) is Reason.JOIN_TOKEN_USED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spiffe_id": f"spiffe://{TD}/service/gateway"}, Reason.JOIN_TOKEN_MISMATCH),
        ({"spiffe_id": ""}, Reason.JOIN_TOKEN_MISMATCH),
        ({"ca_spki_sha256": bytes(32)}, Reason.JOIN_TOKEN_MISMATCH),
        ({"csr": b"garbage"}, Reason.CERTIFICATE_REQUEST_INVALID),
    ],
)
def test_a_wrong_attempt_uses_the_token_up(
    desk: Desk, changes: dict[str, Any], reason: Reason
) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    assert refusal(lambda: desk.ask(token, **changes)) is reason
    assert refusal(lambda: desk.ask(token)) is Reason.JOIN_TOKEN_USED


def test_a_guess_uses_nothing_up(desk: Desk) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    for guess in (b"", bytes(32), token[:-1], token + b"x"):
        assert refusal(lambda guess=guess: desk.ask(guess)) is Reason.JOIN_TOKEN_UNKNOWN  # type: ignore[misc]
    assert desk.told == []
    desk.ask(token)


def test_of_many_who_show_it_at_once_one_is_let_in(desk: Desk) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    start, reasons = threading.Barrier(6), list[Reason | None]()

    def attempt() -> None:
        start.wait(10)
        try:
            desk.ask(token)
            reasons.append(None)
        except SealwardError as error:
            reasons.append(error.reason)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, reasons)) == sorted(["None", *[str(Reason.JOIN_TOKEN_USED)] * 5])


def test_a_revoked_identity_has_no_token_left(desk: Desk) -> None:
    token, _ = desk.tokens.make(PACS, 300)
    desk.issue(PACS)
    desk.revocations.revoke("cessation", identity=PACS.uri)
    assert refusal(lambda: desk.ask(token)) is Reason.JOIN_TOKEN_USED
    # Also where it has no certificate yet.
    other = parse_identity(f"spiffe://{TD}/workload/ris")
    token, _ = desk.tokens.make(other, 300)
    with pytest.raises(SealwardError):
        desk.revocations.revoke("cessation", identity=other.uri)
    assert refusal(lambda: desk.ask(token, spiffe_id=other.uri)) is Reason.JOIN_TOKEN_USED


@pytest.mark.parametrize(
    "uri",
    [
        f"spiffe://{TD}/service/keys", f"spiffe://{TD}/service/other", f"spiffe://{TD}/admin/local",
        "spiffe://elsewhere.local/workload/pacs",
    ],
)  # fmt: skip
def test_who_gets_no_token(desk: Desk, uri: str) -> None:
    forbidden = Reason.IDENTITY_FORBIDDEN
    assert refusal(lambda: desk.tokens.make(parse_identity(uri), 300)) is forbidden


def test_the_authority_to_trust_is_the_one_of_the_listener(desk: Desk) -> None:
    """While an authority is replaced, the listener may still show a certificate of the old one."""
    before = spki_sha256(desk.tokens.authority())
    desk.authority.announce()
    desk.authority.adopt()
    assert spki_sha256(desk.tokens.authority()) == before
    token, _ = desk.tokens.make(PACS, 300)
    desk.material = desk.issue(parse_identity(f"spiffe://{TD}/service/keys"))
    assert spki_sha256(desk.tokens.authority()) != before
    assert refusal(lambda: desk.ask(token, ca_spki_sha256=before)) is Reason.JOIN_TOKEN_MISMATCH


# --- the token file ------------------------------------------------------------------------------


def token_of(desk: Desk) -> JoinToken:
    token, ends = desk.tokens.make(PACS, 300)
    pem = desk.tokens.authority().public_bytes(Encoding.PEM)
    return JoinToken(token, PACS, pem, ends, "10.0.0.1:8000")


def test_a_token_file_is_read_as_it_was_written(desk: Desk, tmp_path: Path) -> None:
    token = token_of(desk)
    assert parse_token(format_token(token)) == token
    assert repr(token.token) not in repr(token)
    path = tmp_path / "token"
    write_private(path, format_token(token))
    assert read_token_file(path) == token
    path.chmod(0o640)
    with pytest.raises(StartupError, match="open to others"):
        read_token_file(path)
    with pytest.raises(StartupError, match="cannot be read"):
        read_token_file(tmp_path / "none")


def test_a_token_file_that_was_changed(desk: Desk) -> None:
    whole = json.loads(format_token(token_of(desk)))
    other = new_authority(TD, utc_now()).certificate
    foreign = x509.load_der_x509_certificate(other).public_bytes(Encoding.PEM).decode()
    for change in (
        {"ca_pem": foreign}, {"ca_pem": ""}, {"ca_spki_sha256": "00" * 32}, {"token": "AAAA"},
        {"token": 7}, {"spiffe_id": "nobody"}, {"expires": "soon"}, {"format": "v2"},
    ):  # fmt: skip
        with pytest.raises(StartupError, match="not whole"):
            parse_token(json.dumps({**whole, **change}).encode())
    for data in (b"", b"{}", b"[]", b"\xff"):
        with pytest.raises(StartupError, match="not whole"):
            parse_token(data)


# --- the folder of who joined --------------------------------------------------------------------


def test_a_folder_keeps_an_identity(desk: Desk, tmp_path: Path) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    first, second = desk.issue(PACS), desk.issue(PACS)
    folder.save(first)
    assert folder.load() == first
    folder.save(second)
    assert folder.load() == second
    names = sorted(path.name for path in (tmp_path / "identity").iterdir())
    assert names == ["ca.pem", "cert.pem", "key.pem"]
    assert all(p.stat().st_mode & 0o077 == 0 for p in (tmp_path / "identity").iterdir())
    (tmp_path / "identity" / "cert.pem").write_bytes(first.chain_pem)
    with pytest.raises(StartupError, match="join again"):
        folder.load()
    (tmp_path / "identity" / "cert.pem").unlink()
    with pytest.raises(StartupError, match=r"cert\.pem is missing: join again"):
        folder.load()
    (tmp_path / "identity").chmod(0o755)
    with pytest.raises(StartupError, match="open to others"):
        folder.load()


@pytest.mark.parametrize("writes", range(4))
def test_dying_between_any_two_files_leaves_the_new_identity(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    class Died(BaseException):
        pass

    from sealward.kit import joining

    folder = IdentityFolder(tmp_path / "identity")
    first, second = desk.issue(PACS), desk.issue(PACS)
    folder.save(first)
    done: list[str] = []

    def write(path: Path, data: bytes) -> None:
        if len(done) == writes:
            raise Died
        done.append(path.name)
        write_private(path, data)

    monkeypatch.setattr(joining, "write_private", write)
    with pytest.raises(Died):
        folder.save(second)
    monkeypatch.undo()
    assert folder.load() == (second if writes else first)
    assert folder.load() == (second if writes else first)


def test_a_renewal_that_is_not_whole_is_left_out(desk: Desk, tmp_path: Path) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    first = desk.issue(PACS)
    folder.save(first)
    for data in (b"", b"{}", b'{"key": 1, "cert": "", "ca": ""}', b"\xff"):
        (tmp_path / "identity" / ".renewed.json").write_bytes(data)
        assert folder.load() == first
