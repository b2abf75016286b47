"""Which witnesses there are, by the settings; and the policy that outsiders get."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from sealward.kit.errors import StartupError
from sealward.tlog.note import parse_vkey
from sealward.tlog.policy import Policy
from services.audit.cosigning.builtin import BuiltinWitness
from services.audit.cosigning.policy import Witnesses, read_witnesses, shown_policy
from tests.support.cosigners import ed25519, ml_dsa, policy_text
from tests.support.tlog_logs import ORIGIN, signer


class Builtin:
    verifiers = (ed25519("own").verifier, ml_dsa("own").verifier)


def read(path: Path | None) -> Witnesses:
    return read_witnesses(path, cast("BuiltinWitness", Builtin()), seconds=1, ca_file=None)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "policy"
    path.write_bytes(data)
    return path


OWN = f"witness mine {ed25519('own').vkey}"
ONE = f"witness one {ed25519('one').vkey} https://one.example/w/"
ONE_PQ = f"witness one-pq {ml_dsa('one').vkey} https://one.example/w"
TWO = f"witness two {ed25519('two').vkey} https://two.example"


def test_without_a_file_it_is_the_built_in_one() -> None:
    found = read(None)
    assert (found.builtin, found.outside, found.policy.quorum) == ("built-in", (), "built-in")
    text = shown_policy(found, [signer().vkey, signer(2).vkey])
    policy = Policy.parse(text)
    assert [log.verifier.name for log in policy.logs] == [ORIGIN] * 2
    assert policy.witnesses[0].identity == ("own", ed25519("own").key_id)
    # The other type stands there to be taken over by hand: not every tool knows it.
    (line,) = [x for x in text.decode().splitlines() if x.startswith("# witness")]
    name, vkey = line.split(" ")[2:]
    assert name == "built-in-ml-dsa"
    assert vkey == ml_dsa("own").vkey


def test_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        policy_text(
            "all", f"log {signer(7, 'other').vkey}", "# who", OWN, ONE, ONE_PQ, TWO,
            "group both any one one-pq", "group all all mine both two",
        ),
    )  # fmt: skip
    found = read(path)
    assert found.builtin == "mine"
    # One place is asked once, whatever types of keys it has.
    assert [(w.name, w.url, len(w.verifiers)) for w in found.outside] == [
        ("one", "https://one.example/w", 2),
        ("two", "https://two.example", 1),
    ]
    text = shown_policy(found, [signer().vkey])
    # The logs are ours, whatever the file says; the rest is the file's.
    assert [log.verifier.name for log in Policy.parse(text).logs] == [ORIGIN]
    assert b"# who\n" in text
    assert parse_vkey(text.split()[1].decode()).name == ORIGIN


def test_the_built_in_one_need_not_count(tmp_path: Path) -> None:
    found = read(write(tmp_path, policy_text("one", ONE)))
    assert (found.builtin, len(found.outside)) == ("", 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"quorum one\n", "line 1"),
        (policy_text("none", ONE), "quorum none"),
        (policy_text("one", f"witness one {ed25519('one').vkey}"), "has no URL"),
        (policy_text("one", f"witness one {ed25519('one').vkey} http://one.example"), "https"),
    ],
)
def test_a_file_that_is_not_to_be_used(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        read(write(tmp_path, data))


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="WITNESS_POLICY_FILE cannot be read"):
        read(tmp_path / "missing")


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sealward.kit.settings import load
    from services.audit.settings import AuditSettings

    values: dict[str, Any] = {
        "DATA_DIR": tmp_path, "ENROLL_DIR": tmp_path, "WITNESS_POLICY_FILE": "",
        "WITNESS_CA_FILE": "",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"SEALWARD_AUDIT_{name}", str(value))
    settings = load(AuditSettings, "audit")
    assert settings.witness_policy_file is None
    assert settings.witness_ca_file is None
    assert settings.witness_hold_seconds == 0
