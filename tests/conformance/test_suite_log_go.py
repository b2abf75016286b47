"""Go's sumdb packages verify what a real suite published, and a receipt that it gave."""

from __future__ import annotations

import shutil
from pathlib import Path

import services
from tests.support import tlog_go
from tests.support.suites import RunningSuite, until


def test_go_verifies_a_suites_log_and_receipt(suite: RunningSuite, tmp_path: Path) -> None:
    program = tlog_go.build(tmp_path)
    name = suite.user("gopher")
    answers = [suite.ask(name) for _ in range(3)]
    with suite.suite.vkey_file.open() as file:
        assert len(file.readlines()) == 1
    last = answers[-1]
    until(lambda: suite.published() > last.proof.log_index, "the log is published")
    receipt = tmp_path / "receipt"
    receipt.write_bytes(last.proof.receipt)
    (tmp_path / "request").write_bytes(last.request)
    (tmp_path / "response").write_bytes(last.response)
    model = Path(services.__path__[0], "inference/shipped/breast-cancer/model.onnx")
    call = [
        *("-receipt", receipt, "-request", tmp_path / "request"),
        *("-response", tmp_path / "response", "-model", model, "-outcome", "0"),
    ]
    log = shutil.copytree(suite.suite.log_dir, tmp_path / "log")
    status, output = tlog_go.verify(program, log, suite.suite.vkey_file, *call)
    assert status == 0, output
    (tmp_path / "response").write_bytes(last.response + b"\0")
    status, _ = tlog_go.verify(program, log, suite.suite.vkey_file, *call)
    assert status != 0

    # The same program refuses the log with one bit changed.
    bundles = sorted(log.glob("tile/entries/**/*"), key=lambda p: p.stat().st_mtime)
    bundle = next(p for p in reversed(bundles) if p.is_file())
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    status, _ = tlog_go.verify(program, log, suite.suite.vkey_file)
    assert status != 0
