"""The register of certificates and the sealed list of those that were revoked."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.kit.tls import make_csr, new_key
from sealward.seal.rootkey import UnlockSecret, new_identity
from services.keys.authority import KeystoreAuthority, new_authority, utc_now
from services.keys.keystore import open_or_create
from services.keys.keystoreformat import Content
from services.keys.profiles import Lives, profile_of
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.register import Register
from services.keys.revocations import CONTEXT, Issuance, RevocationList

TD = "sealward.local"
ANN, BOB = (parse_identity(f"spiffe://{TD}/user/{name}") for name in ("ann", "bob"))
SECRET = UnlockSecret(new_identity())


class Desk:
    """The list as the service has it, over a real keystore; `again` is the next start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1_800_000_000.0
        self.open()

    def open(self) -> None:
        self.store, _ = open_or_create(
            self.folder,
            lambda _creating: SECRET,
            lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
        )
        self.keys = EmbeddedBranchKeys(self.store)
        self.register = Register(self.folder / "register.sqlite")
        self.view = Revocations()
        self.list = RevocationList(self.register, self.keys, self.view, lambda: self.now)
        self.issuance = Issuance(
            KeystoreAuthority(self.store), self.register, self.list, lambda: self.now
        )

    def close(self) -> None:
        self.list.close()
        self.register.close()
        self.store.close()

    def again(self) -> None:
        self.close()
        self.open()
        self.list.load()

    def issue(self, identity: object = ANN, key: object = None, by: Peer | None = None) -> str:
        profile = profile_of(identity, Lives(3600, 86_400))  # type: ignore[arg-type]
        issued = self.issuance.issue(profile, make_csr(key or new_key(), "x"), by)  # type: ignore[arg-type]
        return f"{issued.serial:x}"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    # Certificates are dated by the real clock.
    made.now = utc_now().timestamp()
    made.list.load()
    yield made
    made.close()


def refusal(call: object) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()  # type: ignore[operator]
    return caught.value.reason


def test_what_is_issued_stands_in_the_register(desk: Desk) -> None:
    first, second = desk.issue(), desk.issue()
    desk.issue(BOB)
    rows = desk.register.living(int(desk.now), ANN.uri)
    assert {row.serial for row in rows} == {first, second}
    assert all(row.not_after > desk.now + 80_000 for row in rows)
    assert len(desk.register.living(int(desk.now))) == 3
    assert len(desk.register.living(int(desk.now), limit=2)) == 2
    assert desk.register.living(int(desk.now) + 90_000) == []
    desk.again()
    found = desk.register.find(first)
    assert found is not None
    assert found.identity == ANN.uri


def test_an_identity_loses_all_its_certificates_and_nobody_else_does(desk: Desk) -> None:
    serials = {desk.issue(), desk.issue()}
    spared = desk.issue(BOB)
    revoked = desk.list.revoke("cessation", identity=ANN.uri)
    assert {entry.serial for entry in revoked} == serials
    assert desk.list.version == 1
    assert all(int(serial, 16) in desk.view for serial in serials)
    assert int(spared, 16) not in desk.view
    # Again: nothing is left to do. Who may have a later certificate is asked elsewhere.
    assert desk.list.revoke("cessation", identity=ANN.uri) == []
    assert desk.list.version == 1
    assert int(desk.issue(), 16) not in desk.view
    assert [e.identity for e in desk.list.entries()] == [ANN.uri, ANN.uri]
    assert desk.list.entries(BOB.uri) == []


def test_it_survives_a_restart(desk: Desk) -> None:
    serial = desk.issue()
    desk.list.revoke("superseded", serial=serial)
    desk.again()
    assert desk.list.version == 1
    assert int(serial, 16) in desk.view
    assert desk.list.entries()[0].reason == "superseded"


def test_a_serial_number_that_was_never_entered(desk: Desk) -> None:
    (entry,) = desk.list.revoke("superseded", serial="abc123")
    assert (entry.identity, entry.serial) == ("", "abc123")
    assert 0xABC123 in desk.view
    assert refusal(lambda: desk.list.revoke("superseded", identity=BOB.uri)) is Reason.NOT_FOUND


def test_a_compromised_key_is_certified_no_more(desk: Desk) -> None:
    key, other = new_key(), new_key()
    desk.list.revoke("key-compromise", serial=desk.issue(key=key))
    desk.list.revoke("superseded", serial=desk.issue(key=other))
    assert refusal(lambda: desk.issue(key=key)) is Reason.KEY_REVOKED
    assert refusal(lambda: desk.issue(BOB, key=key)) is Reason.KEY_REVOKED
    desk.issue(key=other)
    # Long after the certificate is off the list that is pushed, too.
    desk.now += 30 * 86_400
    desk.list.revoke("superseded", serial="1")
    desk.again()
    assert refusal(lambda: desk.issue(key=key)) is Reason.KEY_REVOKED
    assert len(desk.view) == 1
    assert len(desk.list.entries()) == 2


def test_who_is_revoked_while_asking_gets_nothing(desk: Desk) -> None:
    serial = desk.issue()
    peer = Peer(ANN, bytes(32), "ipv4:127.0.0.1:1", serial=int(serial, 16))
    desk.issue(by=peer)
    desk.list.revoke("key-compromise", serial=serial)
    assert refusal(lambda: desk.issue(by=peer)) is Reason.CERTIFICATE_REVOKED


def test_followers_have_the_list_at_once_and_each_change(desk: Desk) -> None:
    first = desk.issue()
    desk.list.revoke("superseded", serial=first)
    following = desk.list.follow(lambda: True)
    assert next(following) == (1, [first])
    second = desk.issue()
    threading.Timer(0.05, lambda: desk.list.revoke("superseded", serial=second)).start()
    changes = (item for item in following if item[1] is not None)
    assert next(changes) == (2, [first, second])
    desk.list.close()
    assert list(following) == []
    assert list(itertools.islice(desk.list.follow(lambda: False), 1)) == []


def test_it_moves_on_with_its_key(desk: Desk) -> None:
    serial = desk.issue()
    assert not desk.list.rewrap()
    desk.list.revoke("superseded", serial=serial)
    assert not desk.list.rewrap()
    assert desk.keys.rotate(CONTEXT.tenant, CONTEXT.purpose) == 2
    assert desk.list.rewrap()
    assert not desk.list.rewrap()
    desk.keys.retire(CONTEXT.tenant, CONTEXT.purpose, 2)
    desk.again()
    assert int(serial, 16) in desk.view
    assert desk.list.version == 1


def test_a_list_that_does_not_open_stops_the_start(desk: Desk) -> None:
    desk.list.revoke("superseded", serial=desk.issue())
    found = desk.register.sealed_revocations()
    assert found is not None
    wrapped, sealed = found
    other_key, other_wrapped = desk.keys.create(CONTEXT.about("another"))
    assert other_key
    for bad in (
        (wrapped, sealed[:-1]),
        (wrapped, sealed[:50] + bytes([sealed[50] ^ 1]) + sealed[51:]),
        (other_wrapped, sealed),
        (b"", sealed),
        (wrapped, b""),
    ):
        desk.register.put_revocations(*bad)
        with pytest.raises(StartupError, match="revoked certificates in the register"):
            desk.again()
    desk.register.put_revocations(wrapped, sealed)
    desk.again()


def test_a_damaged_register_stops_the_start(desk: Desk, tmp_path: Path) -> None:
    for _ in range(50):
        desk.issue()
    desk.register.close()
    path = tmp_path / "register.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(bytes(data))
    with pytest.raises(StartupError, match="register of certificates"):
        Register(path)
    desk.register = Register(tmp_path / "other.sqlite")


def test_a_disk_that_takes_nothing_revokes_nothing_and_says_so(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = desk.issue()

    class Full:
        in_transaction = False

        def __init__(self, inner: sqlite3.Connection) -> None:
            self.inner = inner

        def execute(self, text: str, *values: object) -> sqlite3.Cursor:
            if text.startswith(("BEGIN", "INSERT")):
                raise sqlite3.OperationalError("database or disk is full")
            return self.inner.execute(text, *values)

        def close(self) -> None:
            self.inner.close()

    monkeypatch.setattr(desk.register, "_db", Full(desk.register._db))
    unavailable = Reason.KEYSTORE_UNAVAILABLE
    assert refusal(lambda: desk.list.revoke("superseded", serial=serial)) is unavailable
    assert refusal(desk.issue) is unavailable
    assert int(serial, 16) not in desk.view
    assert desk.list.version == 0
