"""The enrolment folder: who gets a certificate, and what is refused and removed."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.kit.enroll import enroll, write_private
from sealward.kit.errors import SealwardError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.tls import make_csr, new_key
from services.keys.authority import EmbeddedAuthority, new_authority, utc_now
from services.keys.enrolment import EnrolmentFolder, read_claimed, who_enrols
from services.keys.profiles import Lives, profile_of

TD = "sealward.local"
LIVES = Lives(3600, 86_400)


class Records:
    def __init__(self) -> None:
        self.rows: list[tuple[str, str, dict[str, Any]]] = []
        self.full = False

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        if self.full:
            raise SealwardError(Reason.AUDIT_UNAVAILABLE, "the audit spool is full")
        self.rows.append((event_type, outcome, attributes))
        return b""

    @property
    def outcomes(self) -> list[str]:
        return [outcome for _, outcome, _ in self.rows]


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "enroll"
        self.folder.mkdir(mode=0o700)
        self.records = Records()
        self.lines = io.StringIO()
        self.authority = EmbeddedAuthority((new_authority(TD, utc_now()),))
        self.watcher = EnrolmentFolder(
            self.folder,
            TD,
            lambda: self.authority.bundle_pem,
            lambda identity, request: self.authority.issue(profile_of(identity, LIVES), request),
            self.records,
            get_logger("keys", self.lines),
        )

    def put(self, name: str, data: bytes | None = None) -> Path:
        path = self.folder / name
        write_private(path, request() if data is None else data)
        return path

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def request() -> bytes:
    return make_csr(new_key(), "service/keys").public_bytes(Encoding.PEM)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("gateway", "service/gateway"),
        ("inference", "service/inference"),
        ("audit", "service/audit"),
        ("admin", "admin/local"),
    ],
)
def test_signs_for_the_name_of_the_file(rig: Rig, name: str, uri: str) -> None:
    rig.put(f"{name}.csr")
    rig.watcher.poll()
    assert rig.files() == sorted(["ca.pem", f"{name}.crt"])
    for path in rig.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    leaf = x509.load_pem_x509_certificate((rig.folder / f"{name}.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{TD}/{uri}"]
    assert rig.records.rows[0][:2] == ("keys.certificate", "ok")
    assert rig.records.rows[0][2]["target"] == f"spiffe://{TD}/{uri}"


def test_the_chassis_enrols_here(rig: Rig) -> None:
    rig.watcher.start()
    try:
        made: dict[str, Any] = {}

        def one(name: str) -> None:
            made[name] = enroll(rig.folder, name, 20)

        threads = [threading.Thread(target=one, args=(n,)) for n in ("gateway", "audit", "admin")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(made) == ["admin", "audit", "gateway"]
        assert all(m.bundle_pem == rig.authority.bundle_pem for m in made.values())
    finally:
        rig.watcher.stop()


@pytest.mark.parametrize(
    "name",
    ["keys", "user", "root", "gateway ", "Gateway", "gateway.csr", "ga\nteway", "local"],
)
def test_other_names_are_refused(rig: Rig, name: str) -> None:
    assert who_enrols(name, TD) is None
    rig.put(f"{name}.csr")
    rig.watcher.poll()
    assert rig.files() == []
    assert rig.records.outcomes == ["denied"]
    assert name not in rig.lines.getvalue() or name in ("keys", "user", "local")


def test_a_symbolic_link_is_refused(rig: Rig, tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_private(target, request())
    (rig.folder / "gateway.csr").symlink_to(target)
    (rig.folder / "audit.csr").symlink_to(tmp_path / "nothing")
    rig.watcher.poll()
    assert rig.files() == []
    assert target.exists()
    assert rig.records.outcomes == ["denied", "denied"]


def test_a_hard_link_is_refused(rig: Rig, tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_private(target, request())
    os.link(target, rig.folder / "gateway.csr")
    rig.watcher.poll()
    assert rig.files() == []
    assert target.exists()
    assert rig.records.outcomes == ["denied"]


def test_what_is_no_regular_file_is_refused(rig: Rig) -> None:
    os.mkfifo(rig.folder / "gateway.csr", 0o600)
    (rig.folder / "audit.csr").mkdir()
    (rig.folder / "audit.csr" / "inside").write_bytes(b"")
    rig.watcher.poll()
    rig.watcher.poll()
    assert [name for name in rig.files() if not name.startswith(".refused-")] == []
    assert rig.records.outcomes == ["denied", "denied"]
    rig.put("audit.csr")
    rig.watcher.poll()
    assert "audit.crt" in rig.files()


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_file_open_to_others_is_refused(rig: Rig, mode: int) -> None:
    rig.put("gateway.csr").chmod(mode)
    rig.watcher.poll()
    assert rig.files() == []
    assert rig.records.outcomes == ["denied"]


def test_a_file_of_another_account_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claimed"
    write_private(path, request())
    assert read_claimed(path, os.geteuid())
    with pytest.raises(SealwardError, match="another account"):
        read_claimed(path, os.geteuid() + 1)


@pytest.mark.parametrize("data", [b"", b"garbage", b"x" * 20_000, request()[:100]])
def test_what_is_no_request_is_refused(rig: Rig, data: bytes) -> None:
    rig.put("gateway.csr", data)
    rig.watcher.poll()
    assert rig.files() == []
    assert rig.records.outcomes == ["denied"]


def test_a_folder_open_to_others_is_not_served(rig: Rig) -> None:
    rig.put("gateway.csr")
    rig.folder.chmod(0o770)
    rig.watcher.poll()
    rig.watcher.poll()
    assert rig.files() == ["gateway.csr"]
    assert rig.lines.getvalue().count("enrolment.blocked") == 1
    rig.folder.chmod(0o700)
    rig.watcher.poll()
    assert "gateway.crt" in rig.files()


def test_temporary_files_and_others_are_left_alone(rig: Rig) -> None:
    for name in (".gateway.csr.4711", "gateway.crt", "note.txt"):
        rig.put(name, b"x")
    rig.watcher.poll()
    assert rig.files() == [".gateway.csr.4711", "gateway.crt", "note.txt"]
    assert rig.records.rows == []


def test_without_a_record_there_is_no_certificate(rig: Rig) -> None:
    rig.records.full = True
    rig.put("gateway.csr")
    rig.watcher.poll()
    rig.watcher.poll()
    assert "gateway.crt" not in rig.files()
    rig.records.full = False
    rig.watcher.poll()
    assert rig.files() == ["ca.pem", "gateway.crt"]
    assert rig.records.outcomes == ["ok"]


def test_a_newer_request_replaces_one_that_was_claimed(rig: Rig) -> None:
    rig.records.full = True
    rig.put("gateway.csr")
    rig.watcher.poll()
    key = new_key()
    rig.put("gateway.csr", make_csr(key, "x").public_bytes(Encoding.PEM))
    rig.records.full = False
    rig.watcher.poll()
    leaf = x509.load_pem_x509_certificate((rig.folder / "gateway.crt").read_bytes())
    assert leaf.public_key() == key.public_key()
    assert rig.files() == ["ca.pem", "gateway.crt"]


def test_refusals_are_recorded_ten_a_second_at_most(rig: Rig) -> None:
    for number in range(50):
        rig.put(f"evil-{number}.csr", b"x")
    rig.watcher.poll()
    assert rig.files() == []
    assert 10 <= len(rig.records.rows) < 20
