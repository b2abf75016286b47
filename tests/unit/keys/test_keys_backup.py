"""Backups of the embedded keystore: what is in them, what opens them, where they are put back."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyrage
import pytest

from sealward.api.keys.v1 import backup_pb2 as pb
from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.seal.context import EncryptionContext
from sealward.seal.rootkey import UnlockSecret, new_identity
from services.keys import restore as restoring
from services.keys.archive import MANIFEST, Archive, sums, unpack
from services.keys.authority import new_authority, utc_now
from services.keys.backup import BackupLog, BackupMaker, BackupServicer, read_recipients
from services.keys.keystore import Keystore, open_or_create, read_generation
from services.keys.keystoreformat import Content
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.register import Register
from services.keys.restore import RestoreError, drill, open_backup, restore
from services.keys.revocations import RevocationList
from tests.support.local_keys import Records, context_as

TD = "sealward.local"
MODEL = EncryptionContext("default", "model", "m@1")
RECOVERY = new_identity()


class Site:
    """A folder of the keys service, with its unlock secret."""

    def __init__(self, folder: Path, *, recovery: bool = True) -> None:
        self.folder = folder
        self.secret = UnlockSecret(new_identity())
        self.recipients = (recipient(RECOVERY),) if recovery else ()
        self.open()

    def open(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.store, self.created = open_or_create(
            self.folder,
            lambda _creating: self.secret,
            lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
        )
        self.branches = EmbeddedBranchKeys(self.store)
        self.register = Register(self.folder / "register.sqlite")
        self.revocations = RevocationList(self.register, self.branches, Revocations())
        self.revocations.load()
        self.maker = BackupMaker(self.store, self.branches, self.register, self.recipients)

    def close(self) -> None:
        self.register.close()
        self.store.close()

    def backup(self, to: Path) -> Path:
        write_private(to, self.maker.make()[1])
        # As the command does: the newest alone is kept.
        beside = restoring.halves_beside(to, self.store.content.deployment)
        beside.unlink(missing_ok=True)
        write_private(beside, self.maker.make_halves()[1])
        return to

    def restore(self, file: Path, *, force: bool = False, **options: Any) -> restoring.Restored:
        found = open_backup(file, lambda: self.secret, options.get("recovery"))
        copies = [restoring.halves_beside(file, found.content.deployment)]
        return restore(
            found,
            self.folder,
            lambda: self.secret,
            force=force,
            now=time.time(),
            copies=copies,
        )


def recipient(identity: str) -> str:
    return str(pyrage.x25519.Identity.from_str(identity).to_public())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "keys")
    yield made
    made.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RestoreError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def repacked(file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members; its sums follow, its seals do not."""
    with tarfile.open(file) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    to = file.with_name(f"{file.name}.changed")
    to.write_bytes(out.getvalue())
    return to


def with_manifest(parts: dict[str, bytes], /, **changes: Any) -> None:
    parts[MANIFEST] = json.dumps({**json.loads(parts[MANIFEST]), **changes}).encode()


def with_part(parts: dict[str, bytes], name: str, data: bytes) -> None:
    parts[name] = data
    told: dict[str, Any] = json.loads(parts[MANIFEST])["members"]
    with_manifest(parts, members={**told, **sums({name: data})})


# --- what is in it --------------------------------------------------------------------------------


def test_a_backup_holds_no_key_in_clear(site: Site, tmp_path: Path) -> None:
    key, wrapped = site.branches.create(MODEL)
    data = site.backup(tmp_path / "b").read_bytes()
    content, _, root = site.store.copy()
    secrets = [key, root.reveal(), content.authorities[0].key.reveal()]
    secrets += [kek.key.reveal() for keks in content.keks.values() for kek in keks]
    for secret in secrets:
        assert secret not in data
    assert b"AGE-SECRET-KEY" not in data
    assert wrapped not in data


def test_any_tar_lists_it_and_any_age_opens_its_root_key(site: Site, tmp_path: Path) -> None:
    file = site.backup(tmp_path / "b")
    listed = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == {
        "manifest.json", "manifest.sealed", "root.age", "recovery.age", "keystore.sealed",
        "canary.json",
    }  # fmt: skip
    age = shutil.which("age")
    if age is None:
        pytest.skip("age is not installed: apt-get install age")
    subprocess.run(["tar", "-xf", file, "-C", tmp_path, "recovery.age"], check=True)
    write_private(tmp_path / "identity", RECOVERY.encode())
    opened = subprocess.run(
        [age, "-d", "-i", tmp_path / "identity", tmp_path / "recovery.age"],
        capture_output=True,
        check=True,
    )
    assert json.loads(opened.stdout)["deployment"] == site.store.content.deployment


def test_a_backup_says_what_it_is(site: Site, tmp_path: Path) -> None:
    site.branches.create(MODEL)
    manifest = unpack(site.backup(tmp_path / "b").read_bytes()).manifest
    assert manifest.deployment == site.store.content.deployment
    assert manifest.generation == site.store.content.generation
    assert manifest.recipients == (recipient(RECOVERY),)
    # The next one is of the same generation: nothing has changed.
    assert unpack(site.backup(tmp_path / "c").read_bytes()).manifest.generation == (
        manifest.generation
    )


def test_recipients_are_read_from_a_file(tmp_path: Path) -> None:
    first, second = recipient(new_identity()), recipient(new_identity())
    path = tmp_path / "recipients"
    path.write_text(f"# the safe\n{first}\n\n  {second}\n")
    assert read_recipients(path) == (first, second)
    assert read_recipients(None) == ()
    for text in ("", "# nobody\n", "age1nonsense\n", f"{new_identity()}\n"):
        path.write_text(text)
        with pytest.raises(StartupError) as caught:
            read_recipients(path)
        assert "AGE-SECRET" not in str(caught.value)
    with pytest.raises(StartupError, match="cannot be read"):
        read_recipients(tmp_path / "none")


# --- restoring ------------------------------------------------------------------------------------


def test_a_lost_folder_is_had_back(site: Site, tmp_path: Path) -> None:
    key, wrapped = site.branches.create(MODEL)
    site.revocations.revoke("cessation", serial="abc")
    file = site.backup(tmp_path / "b")
    deployment = site.store.content.deployment
    site.close()
    shutil.rmtree(site.folder)
    done = site.restore(file)
    assert (done.deployment, done.aside, done.lost) == (deployment, "", ())
    assert done.revocations == "restored"
    assert done.new_witness
    site.open()
    assert not site.created
    assert site.branches.open(MODEL, wrapped) == key
    assert [entry.serial for entry in site.revocations.entries()] == ["abc"]


def test_on_another_machine_with_the_recovery_identity(site: Site, tmp_path: Path) -> None:
    key, wrapped = site.branches.create(MODEL)
    file = site.backup(tmp_path / "b")
    other = Site.__new__(Site)
    other.folder, other.recipients = tmp_path / "other", ()
    other.secret = UnlockSecret("correct horse battery staple")
    assert "not its unlock secret" in refused(lambda: other.restore(file))
    other.restore(file, recovery=UnlockSecret(RECOVERY))
    # It opens with that machine's own secret from now on.
    other.open()
    assert other.branches.open(MODEL, wrapped) == key
    other.close()
    wrong = UnlockSecret(new_identity())
    assert "recovery identity" in refused(lambda: other.restore(file, recovery=wrong))


def test_without_recipients_the_unlock_secret_alone_opens_it(tmp_path: Path) -> None:
    site = Site(tmp_path / "keys", recovery=False)
    file = site.backup(tmp_path / "b")
    site.close()
    message = refused(lambda: site.restore(file, recovery=UnlockSecret(RECOVERY)))
    assert "sealed to no recovery recipient" in message
    site.restore(file)


def test_what_is_damaged_is_kept_aside(site: Site, tmp_path: Path) -> None:
    key, wrapped = site.branches.create(MODEL)
    file = site.backup(tmp_path / "b")
    site.close()
    damaged = site.folder / "keystore" / "keystore.sealed"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    damaged.chmod(0o600)
    with pytest.raises(StartupError, match="damaged"):
        site.open()
    before = damaged.read_bytes()
    done = site.restore(file)
    aside = Path(done.aside)
    assert aside.name.startswith("keystore.aside-")
    assert (aside / "keystore.sealed").read_bytes() == before
    site.open()
    assert site.branches.open(MODEL, wrapped) == key
    site.close()
    # Once more, in the same second even: nothing that was kept is touched.
    again = site.restore(file)
    assert Path(again.aside) != aside
    assert (aside / "keystore.sealed").read_bytes() == before
    site.open()


def test_an_older_backup_is_refused_and_says_what_would_be_lost(site: Site, tmp_path: Path) -> None:
    site.branches.create(MODEL)
    file = site.backup(tmp_path / "b")
    site.branches.rotate("default", "model")
    _, lost = site.branches.create(EncryptionContext("default", "session", "epoch-1"))
    generation = site.store.content.generation
    site.close()
    message = refused(lambda: site.restore(file))
    assert f"it has had generation {generation}, the backup is of {generation - 2}" in message
    assert "default/model@2, default/session@1" in message
    site.open()
    site.close()
    # The folder is damaged beyond opening: the number beside it still tells.
    (site.folder / "keystore" / "root.age").unlink()
    assert f"keys that were made in generations {generation - 1} to {generation}" in refused(
        lambda: site.restore(file)
    )
    done = site.restore(file, force=True)
    assert done.lost
    site.open()
    with pytest.raises(SealwardError):
        site.branches.open(EncryptionContext("default", "session", "epoch-1"), lost)
    assert read_generation(site.folder) == generation - 2


def test_another_deployments_keystore_is_not_overwritten(site: Site, tmp_path: Path) -> None:
    file = site.backup(tmp_path / "b")
    site.close()
    other = Site(tmp_path / "other")
    _, wrapped = other.branches.create(MODEL)
    other.close()
    found = open_backup(file, lambda: site.secret, None)

    def put(*, force: bool) -> restoring.Restored:
        return restore(
            found,
            other.folder,
            lambda: other.secret,
            force=force,
            now=time.time(),
            copies=[restoring.halves_beside(file, found.content.deployment)],
        )

    message = refused(lambda: put(force=False))
    assert "another deployment" in message
    assert "default/model@1" in message
    assert "default/model@1" in put(force=True).lost
    other.open()
    with pytest.raises(SealwardError):
        other.branches.open(MODEL, wrapped)
    other.close()
    site.open()


def test_a_keystore_in_use_is_left_alone(site: Site, tmp_path: Path) -> None:
    file = site.backup(tmp_path / "b")
    with pytest.raises(StartupError, match="in use"):
        site.restore(file)


def test_the_later_list_of_revoked_certificates_stays(site: Site, tmp_path: Path) -> None:
    site.revocations.revoke("cessation", serial="1")
    file = site.backup(tmp_path / "b")
    site.revocations.revoke("cessation", serial="2")
    site.close()
    assert site.restore(file).revocations == "kept"
    site.open()
    assert {entry.serial for entry in site.revocations.entries()} == {"1", "2"}
    # A register that is damaged is kept aside, and the list comes from the backup.
    site.close()
    register = site.folder / "register.sqlite"
    register.write_bytes(b"not a database, not at all" * 100)
    assert site.restore(file).revocations == "restored"
    assert list(site.folder.glob("register.sqlite.aside-*"))
    site.open()
    assert {entry.serial for entry in site.revocations.entries()} == {"1"}


def test_a_list_that_nothing_opens_any_more_is_said_to_be_lost(site: Site, tmp_path: Path) -> None:
    file = site.backup(tmp_path / "b")
    site.revocations.revoke("cessation", serial="1")
    site.close()
    assert site.restore(file, force=True).revocations == "lost"
    site.open()
    assert site.revocations.entries() == []


@pytest.mark.parametrize("dies", ["rename", "fsync"])
@pytest.mark.parametrize("after", range(6))
def test_killed_anywhere_nothing_is_lost_and_it_can_be_done_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, after: int
) -> None:
    class Died(BaseException):
        pass

    from services.keys import files

    key, wrapped = site.branches.create(MODEL)
    file = site.backup(tmp_path / "b")
    site.close()
    original = getattr(files.os if dies == "fsync" else Path, dies)
    done: list[int] = []

    def die(*arguments: Any) -> Any:
        if len(done) >= after:
            raise Died
        done.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os if dies == "fsync" else Path, dies, die)
        # What a process that is killed does not do either.
        patch.setattr(restoring.shutil, "rmtree", lambda *_a, **_k: None)  # type: ignore[attr-defined]
        with suppress(Died):
            site.restore(file)
    # Either it opens, or the start says that it is gone; it is never made anew.
    problem = ""
    try:
        site.open()
        site.close()
    except StartupError as error:
        problem = str(error)
    assert not problem or "is gone" in problem
    site.restore(file)
    site.open()
    assert not site.created
    assert site.branches.open(MODEL, wrapped) == key


# --- what is no backup ----------------------------------------------------------------------------


def test_every_flipped_bit_of_what_counts_is_found(site: Site, tmp_path: Path) -> None:
    data = site.backup(tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "b") as tar:
        bodies = [(m.offset_data, m.size) for m in tar]
    for start, size in bodies:
        for place in range(start, start + size, max(1, size // 7)):
            changed = bytearray(data)
            changed[place] ^= 1
            (tmp_path / "c").write_bytes(changed)
            refused(lambda: open_backup(tmp_path / "c", lambda: site.secret, None))


def test_what_is_cut_off_or_something_else(site: Site, tmp_path: Path) -> None:
    data = site.backup(tmp_path / "b").read_bytes()
    for part in (b"", b"garbage", data[:100], data[: len(data) // 2], data[:-11000]):
        (tmp_path / "c").write_bytes(part)
        assert "not" in refused(lambda: open_backup(tmp_path / "c", lambda: site.secret, None))
    assert "cannot be read" in refused(lambda: open_backup(tmp_path, lambda: site.secret, None))
    with (tmp_path / "big").open("wb") as file:
        file.truncate(64 << 20)
    assert "too large" in refused(lambda: open_backup(tmp_path / "big", lambda: site.secret, None))


def test_parts_of_two_backups_do_not_go_together(site: Site, tmp_path: Path) -> None:
    first = site.backup(tmp_path / "first")
    site.branches.create(MODEL)
    second = site.backup(tmp_path / "second")
    newer: Archive = unpack(second.read_bytes())
    for name in ("keystore.sealed", "canary.json", "manifest.sealed"):
        mixed = repacked(first, lambda m, n=name: with_part(m, n, newer.members[n]))  # type: ignore[misc]
        refused(lambda m=mixed: open_backup(m, lambda: site.secret, None))  # type: ignore[misc]
    for changes in (
        {"generation": 99}, {"deployment": "ffffffff"}, {"made_at": 0}, {"format": "v2"},
        {"members": {}}, {"members": 7}, {"other": 1},
    ):  # fmt: skip
        mixed = repacked(first, lambda m, c=changes: with_manifest(m, **c))  # type: ignore[misc]
        refused(lambda m=mixed: open_backup(m, lambda: site.secret, None))  # type: ignore[misc]
    extra = repacked(first, lambda m: m.update({"../../etc/passwd": b"x"}))
    assert "others" in refused(lambda: open_backup(extra, lambda: site.secret, None))


# --- drills ---------------------------------------------------------------------------------------


def test_a_drill_passes_and_leaves_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.branches.create(MODEL)
    file = site.backup(tmp_path / "b")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(restoring.tempfile, "tempdir", str(temporary))  # type: ignore[attr-defined]
    opened, seconds = drill(file, lambda: site.secret, None)
    assert opened.content == site.store.content
    assert seconds > 0
    drill(file, lambda: site.secret, UnlockSecret(RECOVERY))
    wrong = UnlockSecret(new_identity())
    refused(lambda: drill(file, lambda: wrong, None))
    assert list(temporary.iterdir()) == []
    # The folder of the service is not touched: it is still open.
    site.branches.create(MODEL)


@pytest.mark.parametrize("part", ["key", "object", "digest", "context"])
def test_a_drill_fails_where_the_canary_does(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    make = site.maker._canary

    def spoilt() -> bytes:
        canary = json.loads(make())
        other = json.loads(make())
        if part == "key":
            canary["wrapped"] = other["wrapped"]
        elif part == "object":
            canary["sealed"] = other["sealed"]
        elif part == "digest":
            canary["sha256"] = other["sha256"]
        else:
            canary["name"] = other["name"]
        return json.dumps(canary).encode()

    monkeypatch.setattr(site.maker, "_canary", spoilt)
    file = site.backup(tmp_path / "b")
    assert "canary" in refused(lambda: drill(file, lambda: site.secret, None))


def test_a_drill_fails_where_contexts_are_not_compared(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = site.backup(tmp_path / "b")
    key = site.branches.create(MODEL)[0]
    monkeypatch.setattr(EmbeddedBranchKeys, "open", lambda *_: key)
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "open_object", lambda *_: b"")
        refused(lambda: drill(file, lambda: site.secret, None))
    monkeypatch.undo()

    def any_context(self: Any, context: EncryptionContext, wrapped: bytes) -> bytes:
        if context.resource == "another":
            return bytes(32)
        return original(self, context, wrapped)

    original = EmbeddedBranchKeys.open
    monkeypatch.setattr(EmbeddedBranchKeys, "open", any_context)
    assert "another context" in refused(lambda: drill(file, lambda: site.secret, None))


# --- the service's side ---------------------------------------------------------------------------


def test_a_backup_counts_once_it_is_written(site: Site) -> None:
    now = [1_800_000_000.0]
    log = BackupLog(site.register, site.maker, lambda: now[0])
    servicer = BackupServicer(site.maker, log, Records())
    admin = context_as("admin/local")
    assert log.backup_age() == log.drill_age() == float("inf")
    answer = servicer.CreateBackup(pb.CreateBackupRequest(), admin)
    assert log.backup_age() == float("inf")
    servicer.ConfirmBackup(pb.ConfirmBackupRequest(sha256=answer.sha256), admin)
    now[0] = log.backup()["made_at"] + 90.0
    assert log.backup_age() == 90.0
    assert log.behind() == 0
    site.branches.create(MODEL)
    assert log.behind() == 1
    state = servicer.GetBackupState(pb.GetBackupStateRequest(), admin)
    assert (state.generation, state.backup_generation) == (
        answer.generation + 1, answer.generation,
    )  # fmt: skip
    for wrong in (answer.sha256, "0" * 64, ""):
        with pytest.raises(SealwardError) as caught:
            servicer.ConfirmBackup(pb.ConfirmBackupRequest(sha256=wrong), admin)
        assert caught.value.reason is Reason.NOT_FOUND


def test_a_drill_is_recorded_as_it_ended(site: Site) -> None:
    records, log = Records(), BackupLog(site.register, site.maker)
    servicer = BackupServicer(site.maker, log, records)
    admin = context_as("admin/local")
    for passed in (True, False):
        servicer.RecordDrill(
            pb.RecordDrillRequest(sha256="ab" * 32, generation=7, passed=passed), admin
        )
        event, outcome, attributes = records.rows[-1]
        assert (event, outcome) == ("keys.drill", "ok" if passed else "failed")
        assert attributes["target"] == f"{'ab' * 8}@7"
        assert (log.drill_age() < 60) is passed
    with pytest.raises(SealwardError):
        servicer.RecordDrill(pb.RecordDrillRequest(sha256="../x", passed=True), admin)
    records.full = True
    with pytest.raises(SealwardError):
        servicer.RecordDrill(pb.RecordDrillRequest(sha256="ab" * 32, passed=True), admin)
    assert not log.drill()["passed"]


def test_keys_in_vault_have_no_backup_here(site: Site) -> None:
    servicer = BackupServicer(None, BackupLog(site.register, None), Records())
    with pytest.raises(SealwardError) as caught:
        servicer.CreateBackup(pb.CreateBackupRequest(), context_as("admin/local"))
    assert caught.value.reason is Reason.NOT_SUPPORTED


def test_an_open_keystore_is_what_a_copy_is_of(site: Site) -> None:
    content, members, root = site.store.copy()
    trial = Keystore(site.folder, root.reveal(), content, -1)
    assert trial.content.generation == read_generation(site.folder)
    assert set(members) == {"root.age", "keystore.sealed"}
