"""Cosigned checkpoints: torchwood and transparency-dev read ours, and we read theirs."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.cosignature import ED25519_COSIGNATURE, ML_DSA_44_COSIGNATURE, Cosigner
from sealward.tlog.note import open_note, sign_note
from sealward.tlog.policy import Policy, format_policy, open_cosigned
from sealward.tlog.receipt import format_receipt
from tests.support import tlog_go
from tests.support.cosigners import NOW, ed25519, ml_dsa, policy_text, seed
from tests.support.tlog_logs import ORIGIN, entries, signer, tree_of

SOURCE = Path(__file__).parent / "witness_go"
LEAVES = entries(300)
TREE = tree_of(LEAVES)
TEXT = Checkpoint(ORIGIN, 300, TREE.root()).marshal()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlog_go.build(tmp_path_factory.mktemp("cosigned-go"), source=SOURCE)


def run(program: Path, folder: Path, what: str, keys: bytes, data: bytes) -> tuple[int, str]:
    (folder / "keys").write_bytes(keys)
    (folder / "data").write_bytes(data)
    done = subprocess.run(
        [program, what, folder / "keys", folder / "data"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_formats_reads_both_of_our_types(program: Path, tmp_path: Path) -> None:
    one, two = ed25519("w.example/1"), ml_dsa("w.example/1")
    data = sign_note(TEXT, [signer(), one, two])
    vkeys = f"{one.vkey}\n{two.vkey}\n".encode()
    status, output = run(program, tmp_path, "formats", vkeys, data)
    assert (status, output) == (0, f"w.example/1 {NOW}\n" * 2)
    # The same lines under another checkpoint.
    other = Checkpoint(ORIGIN, 299, TREE.root(299)).marshal()
    assert run(program, tmp_path, "formats", vkeys, data.replace(TEXT, other))[0] == 1
    assert run(program, tmp_path, "formats", ed25519("x").vkey.encode(), data)[0] == 1


def test_torchwood_opens_ours_under_our_policy(program: Path, tmp_path: Path) -> None:
    data = sign_note(TEXT, [signer(), ed25519("w.example/1"), ml_dsa("w.example/1")])
    policy = format_policy([signer().vkey], {"w": ed25519("w.example/1").vkey}, "w", "a note")
    status, output = run(program, tmp_path, "policy", policy, data)
    assert (status, output) == (0, f"{ORIGIN} 300\n{ORIGIN}\nw.example/1\n")
    # The same under the log's line alone.
    bare = sign_checkpoint(Checkpoint(ORIGIN, 300, TREE.root()), [signer()])
    assert run(program, tmp_path, "policy", policy, bare)[0] == 1


def test_torchwood_and_we_agree_on_quorums(program: Path, tmp_path: Path) -> None:
    lines = [
        f"log {signer().vkey}",
        *(f"witness {name} {ed25519(name).vkey}" for name in "1234"),
        "group some 2 1 2 3",
        "group all all some 4",
    ]
    policy = policy_text("all", *lines)
    for names in ("", "1", "12", "123", "14", "124", "34", "234", "1234"):
        data = sign_note(TEXT, [signer(), *(ed25519(name) for name in names)])
        try:
            open_cosigned(data, Policy.parse(policy))
            ours = 0
        except Exception:  # noqa: BLE001 - any refusal counts
            ours = 1
        assert run(program, tmp_path, "policy", policy, data)[0] == ours, names
        assert ours == (0 if "4" in names and len(names) >= 3 else 1)


def test_torchwood_verifies_a_cosigned_receipt(program: Path, tmp_path: Path) -> None:
    cosigned = sign_note(TEXT, [signer(), ed25519("w.example/1"), ml_dsa("w.example/1")])
    path = TREE.inclusions(7, 8, 300)[0]
    policy = format_policy([signer().vkey], {"w": ed25519("w.example/1").vkey}, "w")
    receipt = format_receipt(7, path, LEAVES[7], bytes(32), cosigned)
    assert run(program, tmp_path, "policy", policy, receipt) == (0, "proof\n")
    wrong = format_receipt(7, path, LEAVES[8], bytes(32), cosigned)
    assert run(program, tmp_path, "policy", policy, wrong)[0] == 1
    bare = sign_checkpoint(Checkpoint(ORIGIN, 300, TREE.root()), [signer()])
    alone = format_receipt(7, path, LEAVES[7], bytes(32), bare)
    assert run(program, tmp_path, "policy", policy, alone)[0] == 1


def skey(kind: int, cosigner: Cosigner) -> str:
    """A signer key as golang.org/x/mod/sumdb/note writes them."""
    private = base64.b64encode(bytes([kind]) + seed(cosigner.name)).decode()
    return f"PRIVATE+KEY+{cosigner.name}+{cosigner.key_id.hex()}+{private}"


def test_we_read_what_formats_cosigns(program: Path, tmp_path: Path) -> None:
    one, two = ed25519("w.example/1"), ml_dsa("w.example/1")
    keys = f"{skey(ED25519_COSIGNATURE, one)}\n{skey(ML_DSA_44_COSIGNATURE, two)}\n"
    bare = sign_checkpoint(Checkpoint(ORIGIN, 300, TREE.root()), [signer()])
    status, output = run(program, tmp_path, "make", keys.encode(), bare)
    assert status == 0, output
    verified = open_note(output.encode(), [signer().verifier, one.verifier, two.verifier]).verified
    assert {line.key_id for line in verified} == {signer().key_id, one.key_id, two.key_id}
