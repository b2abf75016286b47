"""Code that is not ours agrees: golang.org/x/mod/sumdb on our logs and receipts, and we on its."""

import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.leaf import Outcome, binding
from sealward.tlog.logdir import verify_directory
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import format_receipt
from tests.support import tlog_go
from tests.support.tlog_logs import ORIGIN, entries, entry, log_files, signer, tree_of, write_log

SALT = sha256(b"salt").digest()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlog_go.build(tmp_path_factory.mktemp("tlog-go"))


@pytest.fixture
def vkey(tmp_path: Path) -> Path:
    file = tmp_path / "log.vkey"
    file.write_text(signer(2).vkey + "\n" + signer().vkey + "\n")
    return file


def put(directory: Path, files: Mapping[str, bytes]) -> Path:
    log = directory / "log"
    write_log(log, dict(files))
    return log


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 1000, 65_536, 66_000])
def test_go_verifies_our_log(program: Path, vkey: Path, tmp_path: Path, size: int) -> None:
    leaves = entries(size)
    log = put(tmp_path, log_files(leaves, signers=[signer(), signer(2)]))
    status, output = tlog_go.verify(program, log, vkey)
    assert status == 0, output
    assert f"size {size}\n" in output


def test_go_reads_full_tiles_where_partial_ones_are_gone(
    program: Path, vkey: Path, tmp_path: Path
) -> None:
    leaves = entries(256)
    files = log_files(leaves)
    checkpoint = Checkpoint(ORIGIN, 200, tree_of(leaves[:200]).root())
    log = put(tmp_path, files | {"checkpoint": sign_checkpoint(checkpoint, [signer()])})
    status, output = tlog_go.verify(program, log, vkey)
    assert status == 0, output


@pytest.mark.parametrize(
    "path",
    ["checkpoint", "tile/entries/000", "tile/entries/001.p/44", "tile/0/000", "tile/1/000.p/1"],
)
def test_go_refuses_a_changed_file(program: Path, vkey: Path, tmp_path: Path, path: str) -> None:
    files = log_files(entries(300))
    content = bytearray(files[path])
    content[len(content) // 2] ^= 1
    log = put(tmp_path, files | {path: bytes(content)})
    status, output = tlog_go.verify(program, log, vkey)
    assert status == 1, output
    assert "FAILED" in output


def test_go_refuses_another_key(program: Path, tmp_path: Path) -> None:
    log = put(tmp_path, log_files(entries(3)))
    vkey = tmp_path / "other.vkey"
    vkey.write_text(signer(3).vkey + "\n")
    assert tlog_go.verify(program, log, vkey)[0] == 1


@pytest.mark.parametrize(("index", "then"), [(0, 1), (7, 8), (7, 300), (256, 290), (299, 300)])
def test_go_verifies_our_receipts(
    program: Path, vkey: Path, tmp_path: Path, index: int, then: int
) -> None:
    parts = {"request": b"question", "response": b"answer", "model": b"onnx"}
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    request, response, model = (sha256(content).digest() for content in parts.values())
    leaf = entry(index, binding=binding(SALT, request, response, model, Outcome.OK))
    leaves = entries(300)
    leaves[index] = leaf
    tree = tree_of(leaves)
    checkpoint = sign_checkpoint(Checkpoint(ORIGIN, then, tree.root(then)), [signer()])
    receipt = format_receipt(
        index, tree.inclusions(index, index + 1, then)[0], leaf, SALT, checkpoint
    )
    file = tmp_path / "call.tlog-proof"
    file.write_bytes(receipt)
    log = put(tmp_path, log_files(leaves))
    arguments = ["-receipt", file, *(a for n in parts for a in (f"-{n}", tmp_path / n))]
    status, output = tlog_go.verify(program, log, vkey, *arguments, "-outcome", "0")
    assert status == 0, output
    assert f"receipt {index}\n" in output
    # The same receipt for another outcome, for other bytes, and under another index.
    assert tlog_go.verify(program, log, vkey, *arguments, "-outcome", "1")[0] == 1
    (tmp_path / "response").write_bytes(b"another answer")
    assert tlog_go.verify(program, log, vkey, *arguments, "-outcome", "0")[0] == 1
    file.write_bytes(receipt.replace(b"\nindex %d\n" % index, b"\nindex %d\n" % (index ^ 1)))
    assert tlog_go.verify(program, log, vkey, "-receipt", file)[0] == 1


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlog_go.build(tmp_path_factory.mktemp("tlog-go-writer"), "./writelog")


@pytest.mark.parametrize("size", [1, 256, 300, 66_000])
def test_we_verify_a_log_that_go_wrote(writer: Path, tmp_path: Path, size: int) -> None:
    subprocess.run([writer, tmp_path, str(size)], check=True, timeout=60)
    vkeys = parse_vkeys((tmp_path / "log.vkey").read_text())
    report = verify_directory(tmp_path / "log", vkeys)
    assert (report.origin, report.size) == ("go.example/log", size)
    assert (report.ahead, report.unknown) == (0, ())
