"""`sealward audit verify --policy`: logs and receipts that witnesses have cosigned, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sealward.cli.audit import app
from sealward.cli.errors import CliError
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.note import sign_note
from sealward.tlog.receipt import format_receipt
from tests.support.cosigners import ed25519, ml_dsa, policy_text
from tests.support.tlog_logs import ORIGIN, entries, log_files, signer, tree_of, write_log

LEAVES = entries(300)
TREE = tree_of(LEAVES)
WITNESSES = (f"witness a {ed25519('a.example').vkey}", f"witness b {ml_dsa('b.example').vkey}")


def cosigned(size: int, *cosigners: Any, root: bytes | None = None) -> bytes:
    checkpoint = Checkpoint(ORIGIN, size, TREE.root(size) if root is None else root)
    return sign_note(checkpoint.marshal(), [signer(), *cosigners])


class Place:
    """A folder with a log, its key and a policy of two witnesses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        write_log(self.log, log_files(LEAVES))
        self.vkey = folder / "log.vkey"
        self.vkey.write_text(f"{signer().vkey}\n")
        self.policy = folder / "policy"
        self.policy.write_bytes(policy_text("both", *WITNESSES, "group both all a b"))

    def put(self, name: str, data: bytes) -> None:
        (self.log / name).write_bytes(data)

    def verify(self, *arguments: str, vkey: bool = True) -> tuple[int, dict[str, Any]]:
        known = ["--vkey", str(self.vkey)] if vkey else []
        # The program's own door turns a CliError into an exit code.
        done = CliRunner().invoke(
            app, ["verify", "--log", str(self.log), *known, "--json", *arguments]
        )
        if isinstance(done.exception, CliError):
            return int(done.exception.code), done.exception.as_json()["error"]
        assert done.exit_code == 0, done.output
        return 0, json.loads(done.stdout)

    def under_policy(self, **options: Any) -> tuple[int, dict[str, Any]]:
        return self.verify("--policy", str(self.policy), **options)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


BOTH = (ed25519("a.example"), ml_dsa("b.example"))


def test_the_checkpoint_itself_is_cosigned(place: Place) -> None:
    place.put("checkpoint", cosigned(300, *BOTH))
    code, found = place.under_policy()
    assert code == 0
    assert found["cosigned"]["size"] == 300
    assert [(c["witness"], c["key"]) for c in found["cosigned"]["by"]] == [
        ("a", "a.example"),
        ("b", "b.example"),
    ]


def test_an_earlier_checkpoint_is_cosigned(place: Place) -> None:
    """A log that grows is published before its witnesses have answered."""
    place.put("checkpoint.cosigned", cosigned(270, *BOTH))
    code, found = place.under_policy()
    assert (code, found["size"], found["cosigned"]["size"]) == (0, 300, 270)
    assert found["unknown_files"] == []


def test_a_log_that_does_not_continue_what_was_cosigned(place: Place) -> None:
    place.put("checkpoint.cosigned", cosigned(270, *BOTH, root=TREE.root(271)))
    code, found = place.under_policy()
    assert code == 1
    assert "270" in found["message"]
    place.put("checkpoint.cosigned", cosigned(301, *BOTH, root=TREE.root(271)))
    code, found = place.under_policy()
    assert code == 1
    assert "older than a known one of 301" in found["message"]


def test_another_log_is_cosigned(place: Place) -> None:
    other = Checkpoint("other.example/log", 270, TREE.root(270))
    key = signer(5, other.origin)
    note = sign_note(other.marshal(), [key, *BOTH])
    place.put("checkpoint.cosigned", note)
    lines = (f"log {signer().vkey}", f"log {key.vkey}", *WITNESSES, "group both all a b")
    place.policy.write_bytes(policy_text("both", *lines))
    code, found = place.under_policy(vkey=False)
    assert code == 1
    assert "another log, other.example/log" in found["message"]


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.cosigned"])
def test_too_few_cosignatures(place: Place, name: str) -> None:
    place.put(name, cosigned(300, BOTH[0]))
    code, found = place.under_policy()
    assert code == 1
    assert found["verified"] is False
    assert "cosigned by" in found["message"]


def test_no_cosignature(place: Place) -> None:
    code, found = place.under_policy()
    assert code == 1
    assert "no witness of the policy" in found["message"]
    # Without a policy nobody asks for one.
    assert place.verify()[0] == 0


def test_the_keys_of_the_log_may_be_the_policys(place: Place) -> None:
    place.put("checkpoint", cosigned(300, *BOTH))
    lines = (f"log {signer().vkey}", *WITNESSES, "group both all a b")
    place.policy.write_bytes(policy_text("both", *lines))
    assert place.under_policy(vkey=False)[0] == 0
    place.policy.write_bytes(policy_text("both", f"log {signer(2).vkey}", *lines[1:]))
    assert place.under_policy(vkey=False)[0] == 1


def test_what_is_not_checked_is_said(place: Place) -> None:
    place.put("checkpoint", cosigned(300, *BOTH))
    done = CliRunner().invoke(app, ["verify", "--log", str(place.log), "--vkey", str(place.vkey)])
    assert "carries cosignatures of a.example, b.example: not checked" in done.stdout


def test_a_receipt(place: Place) -> None:
    receipt = place.folder / "receipt"
    path = TREE.inclusions(7, 8, 300)[0]
    receipt.write_bytes(format_receipt(7, path, LEAVES[7], bytes(32), cosigned(300, *BOTH)))
    code, found = place.verify("--receipt", str(receipt), "--policy", str(place.policy))
    assert code == 0
    assert len(found["cosigned"]["by"]) == 2
    bare = sign_checkpoint(Checkpoint(ORIGIN, 300, TREE.root()), [signer()])
    receipt.write_bytes(format_receipt(7, path, LEAVES[7], bytes(32), bare))
    assert place.verify("--receipt", str(receipt))[0] == 0
    assert place.verify("--receipt", str(receipt), "--policy", str(place.policy))[0] == 1


@pytest.mark.parametrize("content", [None, b"", b"quorum a\n"])
def test_a_policy_that_is_none(place: Place, content: bytes | None) -> None:
    place.policy.unlink()
    if content is not None:
        place.policy.write_bytes(content)
    code, found = place.under_policy()
    assert code == 2
    assert "--policy FILE" in found["advice"]
