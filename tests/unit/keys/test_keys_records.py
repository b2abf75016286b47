"""What is recorded and how much of it, who has which purpose, where unlock secrets come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from sealward.api.keys.v1.keys_pb2 import CreateBranchKeyResponse
from sealward.kit.chain import ControlCall
from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import SERVICES, Peer, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.settings import load
from sealward.seal.context import EncryptionContext
from sealward.seal.rootkey import new_identity
from services.keys import grants
from services.keys.records import CallRecords, RefusalLimit
from services.keys.settings import KeysSettings
from services.keys.unlock import unlock_from_file, unlock_from_terminal, unlock_source

TD = "sealward.local"
CREATE = "/sealward.api.keys.v1.KeysService/CreateBranchKey"
STATUS = "/sealward.api.keys.v1.KeysService/GetStatus"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Records:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        self.full = False

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        if self.full:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "the audit spool is full")
        self.rows.append((event_type, outcome, attributes))
        return b""


def call(method: str = CREATE, who: str = "service/inference") -> ControlCall:
    peer = Peer(parse_identity(f"spiffe://{TD}/{who}"), b"\x01" * 32, "ipv4:127.0.0.1:1")
    return ControlCall(
        method, peer, {}, None, 0, 0.0, attributes={"target": "default/model/breast-cancer@1"}
    )


def answer() -> Message:
    return CreateBranchKeyResponse(key=b"k" * 32)


def raising(error: Exception) -> Any:
    def proceed() -> Message:
        raise error

    return proceed


FORBIDDEN = SealwardError(Reason.IDENTITY_FORBIDDEN, "no")


def test_a_call_is_recorded_before_it_is_answered() -> None:
    records = Records()
    around = CallRecords(records, RefusalLimit())
    assert around(call(), answer) == answer()
    event, outcome, attributes = records.rows[0]
    assert (event, outcome) == ("keys.branch-create", "ok")
    assert attributes["actor_id"] == "inference"
    assert attributes["actor_kind"] == "service"
    assert attributes["actor_cert"] == "01" * 32
    assert attributes["target"] == "default/model/breast-cancer@1"
    assert "k" * 32 not in str(records.rows)
    records.full = True
    with pytest.raises(SealwardError) as caught:
        around(call(), answer)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (FORBIDDEN, "denied", "IDENTITY_FORBIDDEN"),
        (SealwardError(Reason.SEAL_BROKEN, "no"), "failed", "SEAL_BROKEN"),
        (RuntimeError("SECRET"), "failed", "INTERNAL"),
    ],
)
def test_what_goes_wrong_is_recorded_too(error: Exception, outcome: str, reason: str) -> None:
    records = Records()
    with pytest.raises(type(error)):
        CallRecords(records, RefusalLimit())(call(), raising(error))
    assert records.rows[0][:2] == ("keys.branch-create", outcome)
    assert records.rows[0][2]["reason"] == reason
    assert "SECRET" not in str(records.rows)


def test_reading_the_status_is_recorded_when_refused_only() -> None:
    records = Records()
    around = CallRecords(records, RefusalLimit())
    around(call(STATUS), answer)
    assert records.rows == []
    with pytest.raises(SealwardError):
        around(call(STATUS, "user/alice"), raising(FORBIDDEN))
    assert records.rows[0][:2] == ("access.denied", "denied")
    assert records.rows[0][2]["actor_id"] == "alice"


def test_refusals_cannot_fill_the_disk_and_are_all_counted() -> None:
    clock, records = Clock(), Records()
    around = CallRecords(records, RefusalLimit(10, clock))

    def hammer(times: int, who: str = "user/mallory") -> None:
        for _ in range(times):
            with pytest.raises(SealwardError):
                around(call(who=who), raising(FORBIDDEN))

    hammer(1000)
    assert len(records.rows) == 10
    hammer(1, "user/alice")
    assert len(records.rows) == 11
    clock.now += 1
    hammer(1)
    assert records.rows[-1][2]["count"] == 991
    around(call(), answer)
    assert records.rows[-1][1] == "ok"


def test_the_limit_itself_is_bounded() -> None:
    limit = RefusalLimit(10, Clock(), capacity=5)
    for number in range(100):
        assert limit.admit(f"user/{number}") == 1
    assert len(limit._buckets) <= 5


def test_every_service_has_its_own_purposes() -> None:
    seen: set[str] = set()
    for role, purposes in grants.GRANTS.items():
        assert role.removeprefix("service/") in SERVICES
        assert not seen & purposes
        seen |= purposes
    for who in (*(f"service/{name}" for name in SERVICES), "user/alice", "admin/local"):
        identity = parse_identity(f"spiffe://{TD}/{who}")
        for purpose in (*seen, "keystore", "anything"):
            context = EncryptionContext("default", purpose, "x")
            if purpose in grants.GRANTS.get(who, frozenset()):
                grants.check(identity, context)
            else:
                with pytest.raises(SealwardError) as caught:
                    grants.check(identity, context)
                assert caught.value.reason is Reason.IDENTITY_FORBIDDEN


# --- unlock secrets -------------------------------------------------------------------------------


def test_unlock_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "unlock"
    with pytest.raises(StartupError, match="does not exist"):
        unlock_from_file(path)
    identity = new_identity()
    write_private(path, identity.encode() + b"\n")
    secret = unlock_from_file(path)
    assert secret.open(secret.seal(b"root")) == b"root"
    for data, said in ((b"\xff\xfe" * 20, "UTF-8"), (b"short", "at least 12"), (b"", "at least")):
        write_private(path, data)
        with pytest.raises(StartupError, match=said):
            unlock_from_file(path)
    write_private(path, identity.encode())
    path.chmod(0o640)
    with pytest.raises(StartupError, match="chmod 600") as caught:
        unlock_from_file(path)
    assert identity not in str(caught.value)
    with pytest.raises(StartupError, match="regular file"):
        unlock_from_file(tmp_path)


def test_a_symbolic_link_to_the_secret_is_followed(tmp_path: Path) -> None:
    """Secrets of orchestrators are mounted as links."""
    write_private(tmp_path / "secret", new_identity().encode())
    (tmp_path / "unlock").symlink_to(tmp_path / "secret")
    unlock_from_file(tmp_path / "unlock")


def test_unlock_at_the_terminal() -> None:
    answers = iter(["correct horse battery", "correct horse battery"])
    unlock_from_terminal(creating=True, ask=lambda _prompt: next(answers))
    answers = iter(["correct horse battery", "another horse battery"])
    with pytest.raises(StartupError, match="differ"):
        unlock_from_terminal(creating=True, ask=lambda _prompt: next(answers))
    answers = iter(["correct horse battery"])
    unlock_from_terminal(creating=False, ask=lambda _prompt: next(answers))
    with pytest.raises(StartupError, match="at least 12"):
        unlock_from_terminal(creating=False, ask=lambda _prompt: "short")

    def nobody(_prompt: str) -> str:
        raise EOFError

    with pytest.raises(StartupError, match="no unlock secret"):
        unlock_from_terminal(creating=False, ask=nobody)


def test_without_file_and_terminal_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(StartupError, match="SEALWARD_KEYS_UNLOCK_FILE"):
            unlock_source(None)(True)


def test_an_empty_unlock_file_setting_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALWARD_KEYS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SEALWARD_KEYS_ENROLL_DIR", str(tmp_path))
    monkeypatch.setenv("SEALWARD_KEYS_UNLOCK_FILE", "")
    assert load(KeysSettings, "keys").unlock_file is None
