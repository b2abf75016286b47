"""The built-in witness: what it takes on, cosigns, keeps and refuses, over a real keystore."""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.seal.rootkey import UnlockSecret, new_identity
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.cosignature import COSIGNATURE_TYPES, timestamp_of
from sealward.tlog.leaf import EVENT_ID_SIZE
from sealward.tlog.logchange import LogChange, LogFinal, LogKey, change_leaf
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.note import add_signatures, open_note, parse_vkey
from sealward.tlog.proof import format_proof
from sealward.tlog.witness import (
    AddCheckpoint,
    Status,
    format_size,
    parse_cosignatures,
)
from services.keys.authority import new_authority, utc_now
from services.keys.keystore import Keystore, open_or_create
from services.keys.keystoreformat import Content
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.witness import folder as folder_module
from services.keys.witness.cosigning import PURPOSE, TENANT
from services.keys.witness.opening import open_witness
from services.keys.witness.witness import Witness
from tests.support.tlog_logs import signer

TD = "sealward.local"
ORIGIN = f"{TD}/0123abcd/default/2026"
NEXT = f"{TD}/0123abcd/default/2027"
SECRET = UnlockSecret(new_identity())


class Log:
    """A log with its key, entries and tree."""

    def __init__(self, origin: str = ORIGIN, seed: int = 1) -> None:
        self.origin = origin
        self.signers = [signer(seed, origin)]
        self.leaves: list[bytes] = []
        self.tree = Tree()

    @property
    def vkey(self) -> str:
        return self.signers[0].vkey

    def grow(self, count: int, what: bytes = b"entry") -> None:
        for _ in range(count):
            self.append(what + b" %d" % len(self.leaves))

    def append(self, leaf: bytes) -> None:
        self.leaves.append(leaf)
        self.tree.append([leaf_hash(leaf)])

    def change(self, change: LogChange) -> None:
        self.append(change_leaf(bytes(EVENT_ID_SIZE), change))

    def note(self, size: int | None = None) -> bytes:
        size = len(self.leaves) if size is None else size
        return sign_checkpoint(Checkpoint(self.origin, size, self.tree.root(size)), self.signers)

    def request(self, old: int, size: int | None = None) -> bytes:
        new = len(self.leaves) if size is None else size
        proof = tuple(self.tree.consistency(old, new)) if old <= new else ()
        return AddCheckpoint(old, proof, self.note(new)).format()

    def last(self) -> bytes:
        """The proof of the last entry."""
        size = len(self.leaves)
        path = self.tree.inclusion(size - 1, size)
        return format_proof(size - 1, path, self.note(), self.leaves[-1])


@dataclass
class Records:
    rows: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    full: bool = False

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        if self.full:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "the audit spool is full")
        self.rows.append((event_type, outcome, attributes))
        return b""

    @property
    def types(self) -> list[str]:
        """What was recorded after the witness was made."""
        return [row[0] for row in self.rows if row[0] != "witness.create"]


class Deployment:
    """A data folder, its keystore and the witness in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = Records()
        self.now = 1_790_000_000
        self.witness: Witness | None = None
        self.store: Keystore | None = None

    @property
    def place(self) -> Path:
        return self.folder / "witness" / sha256(ORIGIN.encode()).hexdigest()

    def open(self) -> Witness:
        self.close()
        self.store, _ = open_or_create(
            self.folder,
            lambda _creating: SECRET,
            lambda deployment: Content(deployment, TD, (new_authority(TD, utc_now()),)),
        )
        self.branches = EmbeddedBranchKeys(self.store)
        self.witness = open_witness(
            self.folder,
            self.branches,
            self.records,
            get_logger("keys", io.StringIO()),
            deployment=self.store.content.deployment,
            trust_domain=TD,
            clock=lambda: self.now,
        )
        return self.witness

    def close(self) -> None:
        if self.witness is not None:
            self.witness.close()
            self.witness = None
        if self.store is not None:
            self.store.close()
            self.store = None


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    made.close()


@pytest.fixture
def witness(deployment: Deployment) -> Witness:
    return deployment.open()


@pytest.fixture
def log(witness: Witness) -> Log:
    """A log of ten entries, cosigned."""
    made = Log()
    made.grow(10)
    assert witness.add_log(made.vkey, b"")
    assert witness.add_checkpoint(made.request(0)).status == 200
    return made


def reason(action: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        action()
    return caught.value.reason


def ask(witness: Witness, log: Log, old: int, size: int | None = None) -> tuple[int, bytes]:
    answer = witness.add_checkpoint(log.request(old, size))
    return answer.status, answer.body


def test_what_is_cosigned_carries_both_types(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    log.grow(7)
    answer = witness.add_checkpoint(log.request(10))
    assert answer.status == Status.OK
    note = add_signatures(log.note(), parse_cosignatures(answer.body))
    keys = [parse_vkey(line, COSIGNATURE_TYPES) for line in witness.verifiers]
    verified = open_note(note, [*keys, log.signers[0].verifier]).verified
    assert [line.name for line in verified] == [ORIGIN, *[keys[0].name] * 2]
    assert [timestamp_of(line.signature) for line in verified[1:]] == [deployment.now] * 2
    assert keys[0].name.startswith(f"{TD}/witness/")
    # What is kept is what a monitor gets: the log's line and the cosignatures.
    assert (deployment.place / "checkpoint").read_bytes() == note
    assert (deployment.place.parent / "witness.vkey").read_text().split() == witness.verifiers
    assert all(p.stat().st_mode & 0o077 == 0 for p in deployment.folder.rglob("*"))


def test_never_a_smaller_tree(witness: Witness, log: Log) -> None:
    log.grow(10)
    assert ask(witness, log, 10)[0] == 200
    for old, size in ((0, 5), (5, 5), (10, 12), (0, 20)):
        assert ask(witness, log, old, size) == (409, format_size(20))
    assert ask(witness, log, 20, 20)[0] == 200


def test_never_another_history(deployment: Deployment, witness: Witness, log: Log) -> None:
    fork = Log()
    fork.grow(9)
    fork.grow(11, b"other")
    for old, size in ((10, 20), (10, 10)):
        assert ask(witness, fork, old, size)[0] == 422
    assert deployment.records.types == ["witness.log", "witness.conflict", "witness.conflict"]
    _, outcome, attributes = deployment.records.rows[2]
    assert (outcome, attributes["target"]) == ("failed", ORIGIN)
    # The first proof of it is kept, signed by the log.
    kept = (deployment.place / "conflict").read_bytes()
    assert (
        open_note(kept, [log.signers[0].verifier]).text == fork.note(20).split(b"\n\n")[0] + b"\n"
    )
    # The log itself goes on, and so does what is known of the fork.
    log.grow(1)
    assert ask(witness, log, 10)[0] == 200
    assert deployment.open().logs()[0].conflict == kept


def test_forks_by_the_thousand_leave_few_records(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    fork = Log()
    fork.grow(11, b"other")
    for _ in range(50):
        assert ask(witness, fork, 10)[0] == 422
    assert len(deployment.records.rows) < 25


def test_a_fork_that_cannot_be_recorded_is_no_answer(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    fork = Log()
    fork.grow(11, b"other")
    deployment.records.full = True
    assert reason(lambda: ask(witness, fork, 10)) is Reason.AUDIT_UNAVAILABLE


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"old 10\n\nnothing", 400),
        (Log(f"{TD}/0123abcd/other/2026").request(0), 404),
    ],
)
def test_other_answers(witness: Witness, log: Log, body: bytes, status: int) -> None:
    assert witness.add_checkpoint(body).status == status


def test_another_key_is_forbidden(witness: Witness, log: Log) -> None:
    stranger = Log(seed=2)
    stranger.grow(11)
    assert ask(witness, stranger, 10)[0] == 403


def test_it_knows_after_a_start_what_it_knew(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    before = witness.verifiers
    again = deployment.open()
    assert again.verifiers == before
    assert ask(again, log, 0) == (409, format_size(10))
    log.grow(3)
    assert ask(again, log, 10)[0] == 200
    assert (deployment.open().logs()[0].size, deployment.records.types) == (13, ["witness.log"])


def test_nothing_is_promised_that_is_not_on_the_disk(
    deployment: Deployment, witness: Witness, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.grow(5)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_durable", full)
        assert reason(lambda: ask(witness, log, 10)) is Reason.KEYSTORE_UNAVAILABLE
        assert reason(lambda: witness.add_log(signer(9, f"{TD}/0/x/2026").vkey, b"")) is (
            Reason.KEYSTORE_UNAVAILABLE
        )
    assert witness.logs()[0].size == 10
    assert ask(witness, log, 10)[0] == 200


def test_killed_between_disk_and_answer_it_has_cosigned_one_history(
    deployment: Deployment, witness: Witness, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept and not answered binds the witness as if it had been."""
    real = folder_module.write_durable
    log.grow(5)

    class Killed(BaseException):
        pass

    def die(path: Path, data: bytes) -> None:
        real(path, data)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_durable", die)
        with pytest.raises(Killed):
            ask(witness, log, 10)
    again = deployment.open()
    fork = Log()
    fork.grow(10)
    fork.grow(5, b"other")
    assert ask(again, fork, 10) == (409, format_size(15))
    assert ask(again, fork, 15)[0] == 422
    assert ask(again, log, 15)[0] == 200


def test_a_clock_that_was_set_back(deployment: Deployment, witness: Witness, log: Log) -> None:
    first = deployment.now
    deployment.now -= 500
    log.grow(1)
    (line, _) = parse_cosignatures(ask(witness, log, 10)[1])
    assert timestamp_of(line.signature) == first
    deployment.now = first + 9
    again = deployment.open()
    (line, _) = parse_cosignatures(ask(again, log, 11)[1])
    assert timestamp_of(line.signature) == first + 9


# --- logs and their keys ------------------------------------------------------------------------


def test_a_tenant_has_one_log_that_grows(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    """A store that was lost comes back under another name: it is not taken on."""
    other = Log(f"{TD}/ffffffff/default/2026", 3)
    with pytest.raises(SealwardError, match=r"knows the log .* of 10 entries, which has not ended"):
        witness.add_log(other.vkey, b"")
    assert ask(witness, other, 0)[0] == 404
    # Another tenant's log is another matter, and the same log again is none.
    assert witness.add_log(Log(f"{TD}/0123abcd/north/2026").vkey, b"")
    assert not witness.add_log(log.vkey, b"")
    assert deployment.records.types == ["witness.log", "witness.log"]


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "no key",
        signer(1, "other.example/a/default/2026").vkey,
        signer(1, f"{TD}/a/default").vkey,
        signer(1, f"{TD}/a//2026").vkey,
    ],
)
def test_what_is_no_log_of_ours(witness: Witness, vkey: str) -> None:
    assert reason(lambda: witness.add_log(vkey, b"")) is Reason.FIELD_INVALID


def test_nothing_is_taken_on_unrecorded(deployment: Deployment, witness: Witness) -> None:
    deployment.records.full = True
    assert reason(lambda: witness.add_log(Log().vkey, b"")) is Reason.AUDIT_UNAVAILABLE
    assert witness.logs() == []


def test_the_next_key_is_vouched_for_by_the_log(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    old, new = signer(1, ORIGIN), signer(2, ORIGIN)
    assert reason(lambda: witness.add_log(new.vkey, b"")) is Reason.LOG_STATE
    log.change(LogKey(ORIGIN, old.vkey, new.vkey))
    # Signed by the new key alone, nobody who is trusted has said so.
    log.signers = [new]
    assert reason(lambda: witness.add_log(new.vkey, log.last())) is Reason.FIELD_INVALID
    log.signers = [new, old]
    proof = log.last()
    assert reason(lambda: witness.add_log(signer(3, ORIGIN).vkey, proof)) is Reason.FIELD_INVALID
    assert witness.add_log(new.vkey, proof)
    assert not witness.add_log(new.vkey, proof)
    log.signers = [new]
    log.grow(2)
    again = deployment.open()
    assert ask(again, log, 10)[0] == 200
    assert again.logs()[0].vkeys == (old.vkey, new.vkey)
    assert deployment.records.types == ["witness.log", "witness.key"]


@pytest.mark.parametrize("broken", ["path", "leaf", "index", "no extra", "not a proof"])
def test_a_voucher_that_does_not_hold(witness: Witness, log: Log, broken: str) -> None:
    new = signer(2, ORIGIN)
    log.change(LogKey(ORIGIN, signer(1, ORIGIN).vkey, new.vkey))
    size = len(log.leaves)
    path = log.tree.inclusion(size - 1, size)
    leaf = log.leaves[-1]
    proof = {
        "path": format_proof(size - 1, [*path[:-1], bytes(32)], log.note(), leaf),
        "leaf": format_proof(
            size - 1,
            path,
            log.note(),
            change_leaf(b"x" * 16, LogKey(ORIGIN, log.vkey, new.vkey)),
        ),
        "index": format_proof(0, path, log.note(), leaf),
        "no extra": format_proof(size - 1, path, log.note()),
        "not a proof": b"proof",
    }[broken]
    assert reason(lambda: witness.add_log(new.vkey, proof)) is Reason.FIELD_INVALID
    assert len(witness.logs()[0].vkeys) == 1


def turned(witness: Witness, log: Log) -> tuple[Log, bytes]:
    """End a log; return the one that follows and the proof of the end."""
    follower = Log(NEXT, 5)
    log.change(LogFinal(ORIGIN, NEXT, follower.vkey))
    return follower, log.last()


def test_the_next_log_is_vouched_for_by_the_one_before(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    follower, proof = turned(witness, log)
    assert reason(lambda: witness.add_log(follower.vkey, b"")) is Reason.LOG_STATE
    # Its end comes first.
    assert reason(lambda: witness.add_log(follower.vkey, proof)) is Reason.LOG_STATE
    assert ask(witness, log, 10)[0] == 200
    assert reason(lambda: witness.add_log(Log(NEXT, 6).vkey, proof)) is Reason.FIELD_INVALID
    assert witness.add_log(follower.vkey, proof)
    assert not witness.add_log(follower.vkey, proof)
    follower.grow(2)
    assert ask(witness, follower, 0)[0] == 200
    # The one before has ended for good.
    log.grow(1)
    assert ask(witness, log, 11)[0] == 422
    again = deployment.open()
    assert ask(again, log, 11)[0] == 422
    assert [known.successor for known in again.logs()] == [NEXT, ""]
    assert deployment.records.types == ["witness.log", "witness.log", *["witness.conflict"] * 2]


def test_an_entry_that_is_not_the_last_ends_nothing(witness: Witness, log: Log) -> None:
    follower = Log(NEXT, 5)
    log.change(LogFinal(ORIGIN, NEXT, follower.vkey))
    size = len(log.leaves)
    log.grow(1)
    assert ask(witness, log, 10)[0] == 200
    path = log.tree.inclusion(size - 1, size + 1)
    proof = format_proof(size - 1, path, log.note(), log.leaves[size - 1])
    assert reason(lambda: witness.add_log(follower.vkey, proof)) is Reason.FIELD_INVALID


def test_another_tenants_log_does_not_follow(witness: Witness, log: Log) -> None:
    origin = f"{TD}/0123abcd/north/2027"
    follower = Log(origin, 5)
    log.change(LogFinal(ORIGIN, origin, follower.vkey))
    assert ask(witness, log, 10)[0] == 200
    assert reason(lambda: witness.add_log(follower.vkey, log.last())) is Reason.FIELD_INVALID


def test_a_turn_that_was_cut_off_is_completed(
    deployment: Deployment, witness: Witness, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, proof = turned(witness, log)
    assert ask(witness, log, 10)[0] == 200

    def fail(self: object, origin: str, successor: str) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.WitnessFolder, "put_successor", fail)
        assert reason(lambda: witness.add_log(follower.vkey, proof)) is Reason.KEYSTORE_UNAVAILABLE
    again = deployment.open()
    # Until it is complete no third one comes in.
    third = Log(f"{TD}/ffffffff/default/2027", 8)
    assert reason(lambda: again.add_log(third.vkey, b"")) is Reason.LOG_STATE
    assert again.add_log(follower.vkey, proof)
    assert deployment.records.types == ["witness.log", "witness.log"]


def test_forgetting_is_recorded_and_keeps_the_evidence(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    assert reason(lambda: witness.forget("nobody")) is Reason.NOT_FOUND
    deployment.records.full = True
    assert reason(lambda: witness.forget(ORIGIN)) is Reason.AUDIT_UNAVAILABLE
    deployment.records.full = False
    kept = (deployment.place / "checkpoint").read_bytes()
    witness.forget(ORIGIN)
    assert deployment.records.rows[-1] == ("witness.forget", "ok", {"target": ORIGIN, "count": 10})
    assert ask(witness, log, 10)[0] == 404
    (place,) = (deployment.folder / "witness" / "forgotten").iterdir()
    assert (place / "checkpoint").read_bytes() == kept
    again = deployment.open()
    assert again.logs() == []
    # It may come back, smaller.
    assert again.add_log(log.vkey, b"")
    assert ask(again, log, 0, 4)[0] == 200


# --- what lies on the disk ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [("checkpoint", "is damaged"), ("log.vkey", "is damaged")],
)
def test_a_damaged_file_ends_the_start(
    deployment: Deployment, witness: Witness, log: Log, name: str, says: str
) -> None:
    deployment.close()
    path = deployment.place / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StartupError, match=says):
        deployment.open()


def test_a_checkpoint_that_was_not_cosigned_here_is_not_believed(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    """Whoever writes there cannot lower what was cosigned but to what was."""
    deployment.close()
    (deployment.place / "checkpoint").write_bytes(log.note(3))
    with pytest.raises(StartupError, match="is damaged"):
        deployment.open()


def test_the_files_of_one_log_are_not_those_of_another(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    deployment.close()
    deployment.place.rename(deployment.place.with_name("0" * 64))
    with pytest.raises(StartupError, match="another log"):
        deployment.open()


def test_what_a_write_that_died_left_behind_is_removed(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    deployment.close()
    leftover = deployment.place / ".checkpoint.123"
    leftover.write_bytes(b"half")
    assert deployment.open().logs()[0].size == 10
    assert not leftover.exists()


def test_the_key_is_not_made_anew(deployment: Deployment, witness: Witness, log: Log) -> None:
    deployment.close()
    (deployment.folder / "witness" / "key.json").unlink()
    with pytest.raises(StartupError, match=r"key\.json is missing"):
        deployment.open()


def test_a_witness_is_made_once_and_with_a_record(deployment: Deployment) -> None:
    deployment.open()
    deployment.open()
    (row,) = deployment.records.rows
    assert row[0] == "witness.create"
    assert deployment.witness is not None
    assert row[2]["target"] == deployment.witness.verifiers[0].split("+")[0]


def test_what_the_witness_knows_is_not_made_anew(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    """Removing its folder would let a rolled-back log in: the keystore remembers that it was."""
    deployment.close()
    shutil.rmtree(deployment.folder / "witness")
    with pytest.raises(StartupError, match="is missing, and with it what the witness knows"):
        deployment.open()
    # The operator's word that it is lost for good.
    (deployment.folder / ".witness.new").mkdir(mode=0o700)
    again = deployment.open()
    assert again.logs() == []
    assert [row[0] for row in deployment.records.rows].count("witness.create") == 2


@pytest.mark.parametrize("step", ["before the key", "after the key"])
def test_a_first_start_that_died_goes_on(
    deployment: Deployment, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.keys.witness import cosigning, opening

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        if step == "before the key":
            patched.setattr(cosigning, "write_durable", fail)
        else:
            patched.setattr(opening, "sync_folder", lambda _folder: None)
            patched.setattr(Path, "rename", fail)
        with pytest.raises((StartupError, OSError)):
            deployment.open()
    assert deployment.open().logs() == []


def test_its_key_moves_on_with_the_key_encryption_key(
    deployment: Deployment, witness: Witness, log: Log
) -> None:
    before = witness.verifiers
    assert deployment.branches.rotate(TENANT, PURPOSE) == 2
    again = deployment.open()
    deployment.branches.retire(TENANT, PURPOSE, 2)
    again = deployment.open()
    assert again.verifiers == before
    assert ask(again, log, 10)[0] == 200


@pytest.mark.parametrize("name", ["wrapped", "sealed"])
def test_a_damaged_key_cosigns_nothing(
    deployment: Deployment, witness: Witness, log: Log, name: str
) -> None:
    import json

    deployment.close()
    path = deployment.folder / "witness" / "key.json"
    stored = json.loads(path.read_bytes())
    text = stored[name]
    stored[name] = text[:-8] + ("AAAA" if text[-8:-4] != "AAAA" else "BBBB") + text[-4:]
    path.write_text(json.dumps(stored))
    with pytest.raises((StartupError, SealwardError)):
        ask(deployment.open(), log, 10)


def test_exchanged_public_halves_cosign_nothing(
    deployment: Deployment, witness: Witness, log: Log, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import json

    other = Deployment(tmp_path_factory.mktemp("other"))
    vkeys = other.open().verifiers
    other.close()
    deployment.close()
    path = deployment.folder / "witness" / "key.json"
    stored = json.loads(path.read_bytes()) | {"vkeys": vkeys}
    path.write_text(json.dumps(stored))
    with pytest.raises(StartupError):
        deployment.open()
    shutil.rmtree(deployment.place)
    again = deployment.open()
    again.add_log(log.vkey, b"")
    assert reason(lambda: ask(again, log, 0)) is Reason.SEAL_BROKEN


def test_one_process_has_the_folder(deployment: Deployment, witness: Witness) -> None:
    from services.keys.witness.witness import _lock

    with pytest.raises(StartupError, match="in use by another process"):
        _lock(deployment.folder / "witness")
