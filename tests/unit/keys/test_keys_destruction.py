"""Destruction of keys: who may, what is kept, what a keystore and its copies open after it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.seal.secret import Secret
from services.keys import destruction as steps
from services.keys import halves as other_halves
from services.keys.authority import new_authority, utc_now
from services.keys.destroying import CLOCK, Destroyer
from services.keys.destruction import State
from services.keys.destructions import Destructions
from services.keys.destructionservicer import DestructionServicer
from services.keys.keystore import Keystore, open_or_create
from services.keys.keystoreformat import Content
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.register import IssuedRow, Register
from services.keys.rotation import Confirmations
from tests.support.destructions import (
    Clock,
    FakeGuard,
    Log,
    Person,
    PlainKeys,
    Records,
    a_statement,
)

TD = "sealward.local"
MODEL = EncryptionContext("default", "model", "breast-cancer@1")
SESSION = EncryptionContext("default", "session", "gateway")
ANN, BOB = Person("ann"), Person("bob")


def reason_of(call: Any, *arguments: Any, **named: Any) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call(*arguments, **named)
    return caught.value.reason


class Site:
    """A keystore and its destructions in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = UnlockSecret(new_identity())
        self.clock, self.guard, self.records = Clock(), FakeGuard(), Records()
        self.told = 0
        folder.mkdir(mode=0o700)
        self.open()

    def open(self) -> None:
        self.store: Keystore = open_or_create(
            self.folder,
            lambda _creating: self.secret,
            lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
        )[0]
        self.branches = EmbeddedBranchKeys(self.store)
        self.kept = Destructions(self.folder / "destructions.sealed", self.branches)
        self.destroyer = Destroyer(
            self.kept, self.branches, self.store, Confirmations(), self.guard, self.records, Log(),
            clock=self.clock, changed=self.tell,
        )  # fmt: skip

    def tell(self) -> None:
        self.told += 1

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def approved(self, purpose: str = "model", wait: int = 10) -> steps.Destruction:
        payload = a_statement(purpose=purpose)
        asked = steps.request(ANN.sign(payload), ANN.peer, self.clock())
        self.kept.add(asked)
        after = steps.approve(asked, BOB.sign(payload), BOB.peer, self.clock(), wait)
        return self.kept.put(asked, after)

    def destroyed(self, purpose: str = "model") -> steps.Destruction:
        found = self.approved(purpose)
        self.clock.now += 10
        self.destroyer.tick()
        return self.kept.get(found.subject.id)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    made = Site(tmp_path / "keys")
    yield made
    made.store.close()


# --- the other halves ---------------------------------------------------------------------------


def test_neither_half_is_the_key_and_both_are(site: Site) -> None:
    site.branches.create(MODEL)
    (kek,) = site.store.content.keks["default/model"]
    (whole,) = site.store.keks("default", "model")
    half = site.store.halves.of("default/model").halves[1]
    assert len({kek.key.reveal(), half.reveal(), whole.key.reveal()}) == 3
    assert other_halves.combine(kek.key.reveal(), half.reveal()) == whole.key.reveal()
    assert "Secret()" in repr(site.store.halves)


def test_a_file_of_halves_that_is_not_the_newest_stops_the_start(site: Site) -> None:
    path = site.folder / other_halves.FILE
    site.branches.create(MODEL)
    old = path.read_bytes()
    site.store.add_kek("default", "model")
    site.store.close()
    newest = path.read_bytes()
    for content, says in ((old, "older"), (newest[:-1], "damaged"), (b"", "damaged")):
        path.write_bytes(content)
        with pytest.raises(StartupError, match=says):
            site.open()
    path.unlink()
    with pytest.raises(StartupError, match="gone"):
        site.open()
    path.write_bytes(newest)
    path.chmod(0o600)
    site.open()


def test_what_was_there_before_is_overwritten(site: Site, tmp_path: Path) -> None:
    """A link keeps the old blocks in reach, as a look at the raw disk would."""
    path = site.folder / other_halves.FILE
    site.branches.create(MODEL)
    os.link(path, tmp_path / "blocks")
    before = (tmp_path / "blocks").read_bytes()
    site.store.add_kek("default", "model")
    assert (tmp_path / "blocks").read_bytes() == bytes(len(before))


def test_a_crash_between_the_two_files_of_a_new_key(site: Site) -> None:
    _, wrapped = site.branches.create(MODEL)
    sealed = (site.folder / "keystore" / "keystore.sealed").read_bytes()
    generation = (site.folder / "keystore.generation").read_bytes()
    site.store.add_kek("default", "model")
    (site.folder / "keystore" / "keystore.sealed").write_bytes(sealed)
    (site.folder / "keystore.generation").write_bytes(generation)
    site.reopen()
    site.branches.open(MODEL, wrapped)
    assert site.branches.rotate("default", "model") == 2
    key, under_second = site.branches.create(MODEL)
    site.reopen()
    assert site.branches.open(MODEL, under_second) == key


# --- what is destroyed ----------------------------------------------------------------------------


def test_a_destroyed_key_opens_nothing_and_others_do(site: Site) -> None:
    _, wrapped = site.branches.create(MODEL)
    kept_key, kept = site.branches.create(SESSION)
    found = site.destroyed()
    assert (found.state, found.through) == (State.DONE, 1)
    assert site.kept.destroyed("default", "model") == 1
    assert site.kept.destroyed("default", "session") == 0
    assert reason_of(site.branches.open, MODEL, wrapped) is Reason.SEAL_BROKEN
    assert site.branches.open(SESSION, kept) == kept_key
    # What is sealed from now on is under a version that there was not.
    key, again = site.branches.create(MODEL)
    assert site.branches.version_of(again) == 2
    site.reopen()
    assert site.branches.open(MODEL, again) == key
    assert reason_of(site.branches.open, MODEL, wrapped) is Reason.SEAL_BROKEN
    assert site.records.types == ["keys.destroy", "keys.destroyed"]
    assert site.told == 2


def test_an_old_keystore_put_back_whole_opens_nothing_that_was_destroyed(
    site: Site, tmp_path: Path
) -> None:
    """By hand, past every check: the half that is left is worth nothing without the other one."""
    _, wrapped = site.branches.create(MODEL)
    shutil.copytree(site.folder / "keystore", tmp_path / "old")
    old = site.store.content
    site.destroyed()
    (half,) = old.keks["default/model"]
    forced = Keystore(site.folder, site.store.copy()[2].reveal(), old, -1, halves=site.store.halves)
    assert reason_of(EmbeddedBranchKeys(forced).open, MODEL, wrapped) is Reason.SEAL_BROKEN
    for version, known in site.store.halves.of("default/model").halves.items():
        assert version != 1
        guess = other_halves.combine(half.key.reveal(), known.reveal())
        trial = EmbeddedBranchKeys(forced)
        forced._whole["default/model"] = (type(half)(1, 0, Secret(guess)),)
        assert reason_of(trial.open, MODEL, wrapped) is Reason.SEAL_BROKEN


def test_a_retired_version_is_in_no_backup_either(site: Site) -> None:
    site.branches.create(MODEL)
    site.branches.rotate("default", "model")
    site.branches.retire("default", "model", 2)
    assert set(site.store.halves.of("default/model").halves) == {2}
    assert site.store.halves.destroyed == {}


# --- carrying it out ------------------------------------------------------------------------------


def test_not_before_its_time_nor_while_it_is_held(site: Site) -> None:
    _, wrapped = site.branches.create(MODEL)
    found = site.approved()
    site.destroyer.tick()
    assert site.kept.get(found.subject.id) == found
    site.clock.now += 10
    for reason in (Reason.DESTRUCTION_HELD, Reason.AUDIT_UNAVAILABLE):
        site.guard.held, site.guard.reason = True, reason
        assert site.destroyer.tick()
        assert site.destroyer.tick()
        now = site.kept.get(found.subject.id)
        assert (now.state, now.blocked) == (State.WAITING, reason.name)
    # Told once each, not with every look.
    assert site.records.types == ["keys.destroy-blocked"] * 2
    site.guard.held, site.clock.is_steady = False, False
    site.destroyer.tick()
    assert site.kept.get(found.subject.id).blocked == CLOCK
    site.branches.open(MODEL, wrapped)
    site.clock.is_steady = True
    assert not site.destroyer.tick()
    assert site.kept.get(found.subject.id).state is State.DONE


def test_nothing_happens_that_cannot_be_recorded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wrapped = site.branches.create(MODEL)
    found = site.approved()
    site.clock.now += 10

    def full(*_arguments: Any, **_named: Any) -> bytes:
        raise SealwardError(Reason.AUDIT_UNAVAILABLE, "full")

    monkeypatch.setattr(site.records, "record", full)
    assert site.destroyer.tick()
    assert site.kept.get(found.subject.id).state is State.WAITING
    site.branches.open(MODEL, wrapped)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_of_another_keystore_or_a_changed_one_stops_the_start(site: Site) -> None:
    site.branches.create(MODEL)
    site.approved()
    path = site.folder / "destructions.sealed"
    good = path.read_bytes()
    for content in (b"", b"[]", good[:-9], good.replace(b"A", b"B", 1)):
        path.write_bytes(content)
        with pytest.raises(StartupError, match="damaged"):
            Destructions(path, site.branches)


def test_it_follows_its_key(site: Site) -> None:
    site.branches.create(MODEL)
    site.approved()
    assert not site.kept.rewrap()
    site.branches.rotate("default", "trust")
    assert site.kept.rewrap()
    site.branches.retire("default", "trust", 2)
    assert Destructions(site.folder / "destructions.sealed", site.branches).all()


def test_a_statement_counts_once(site: Site) -> None:
    site.branches.create(MODEL)
    jws = ANN.sign(a_statement())
    found = steps.request(jws, ANN.peer, 1)
    site.kept.add(found)
    site.kept.put(found, steps.cancel(found, "admin/local", 2))
    assert reason_of(site.kept.add, found) is Reason.ALREADY_EXISTS
    assert reason_of(site.kept.put, found, found) is Reason.DESTRUCTION_STATE


# --- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "1"}, {"tenant": "../x"}, {"purpose": "witness"}, {"purpose": "log-signing"},
        {"resource": "breast-cancer@1"}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 201},
        {"schema": "another"}, {"more": "x"}, {"purpose": "audit-patient"},
        {"purpose": "audit-patient", "resource": "patient/MRN-1"},
    ],
)  # fmt: skip
def test_a_statement_that_is_not_one_is_refused(fields: dict[str, str]) -> None:
    assert reason_of(steps.read_subject, a_statement(**fields)) in (
        Reason.FIELD_INVALID,
        Reason.NOT_SUPPORTED,
    )


def test_a_request_lapses() -> None:
    payload = a_statement()
    found = steps.request(ANN.sign(payload), ANN.peer, 0)
    late = steps.LAPSE_SECONDS + 1
    refused = reason_of(steps.approve, found, BOB.sign(payload), BOB.peer, late, 1)
    assert refused is Reason.DESTRUCTION_STATE


def test_the_approver_signs_what_was_asked() -> None:
    found = steps.request(ANN.sign(a_statement()), ANN.peer, 0)
    refused = reason_of(steps.approve, found, BOB.sign(a_statement()), BOB.peer, 1, 1)
    assert refused is Reason.FIELD_INVALID


# --- who signed -----------------------------------------------------------------------------------


class _Context:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer


class _Revocations:
    def __init__(self) -> None:
        self.revoked: set[int] = set()

    def holds(self, serial: int) -> bool:
        return serial in self.revoked


def test_only_certificates_that_were_issued_here_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway passes on what it likes; it cannot make up a person."""
    gateway = Person("gateway", "service")
    register, revocations = Register(tmp_path / "register"), _Revocations()
    servicer = DestructionServicer(
        Destructions(tmp_path / "d", PlainKeys()), PlainKeys(), FakeGuard(), register,
        revocations, Records(), 1,
    )  # type: ignore[arg-type]  # fmt: skip
    monkeypatch.setattr("services.keys.destructionservicer.peer_of", lambda context: context.peer)
    behind = _Context(gateway.peer)
    jws = ANN.sign(a_statement())
    assert reason_of(servicer._signer, jws, behind) is Reason.FIELD_INVALID
    peer = ANN.peer
    row = IssuedRow(f"{peer.serial:x}", peer.identity.uri, peer.spki_sha256, 0, 1 << 40)
    register.add(row)
    assert servicer._signer(jws, behind) == peer
    # Of another key under the same serial number, of a service, revoked, by two.
    forged = Person("ann")
    assert reason_of(servicer._signer, forged.sign(a_statement()), behind) is Reason.FIELD_INVALID
    assert reason_of(servicer._signer, gateway.sign(a_statement()), behind) is Reason.FIELD_INVALID
    both = steps.join([jws, BOB.sign(steps.verify(jws).payload)])
    assert reason_of(servicer._signer, both, behind) is Reason.FIELD_INVALID
    revocations.revoked.add(peer.serial)
    assert reason_of(servicer._signer, jws, behind) is Reason.FIELD_INVALID
    # The administrator signs with the connection's own key, and for nobody else.
    admin = Person("local", "admin")
    own = _Context(admin.peer)
    assert servicer._signer(admin.sign(a_statement()), own) == admin.peer
    assert reason_of(servicer._signer, jws, own) is Reason.FIELD_INVALID
    register.close()
