"""A bundle's files, verified by transparency-dev/formats and merkle: nothing of ours takes part."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealward.evidence.bundle import bundle_files
from tests.support import tlog_go
from tests.support.evidence_events import DENIED, LOGIN, PREDICTION, make_events
from tests.support.tlog_logs import ORIGIN, signer

EVENTS = make_events([PREDICTION, DENIED, LOGIN])
FIRST = f"events/{EVENTS[0].id}"
GO_SOURCE = Path(__file__).parent / "bundle_go"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlog_go.build(tmp_path_factory.mktemp("bundle-go"), source=GO_SOURCE)


def verify(program: Path, folder: Path, files: dict[str, bytes]) -> tuple[int, str]:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    done = subprocess.run(
        [program, folder], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_every_event_holds(program: Path, tmp_path: Path) -> None:
    assert verify(program, tmp_path, bundle_files(EVENTS)) == (0, "OK: 3 events\n")


def _leaf(files: dict[str, bytes]) -> None:
    """Another entry, in the file and in the proof alike."""
    leaf = files[f"{FIRST}.leaf"]
    changed = leaf[:-1] + bytes([leaf[-1] ^ 1])
    old, new = (base64.b64encode(bytes(32) + entry) for entry in (leaf, changed))
    files[f"{FIRST}.leaf"] = changed
    files[f"{FIRST}.tlog-proof"] = files[f"{FIRST}.tlog-proof"].replace(old, new)


def _root(files: dict[str, bytes]) -> None:
    proof = files[f"{FIRST}.tlog-proof"]
    files[f"{FIRST}.tlog-proof"] = proof.replace(b"\n8\n", b"\n9\n")


def _key(files: dict[str, bytes]) -> None:
    files["log.vkey"] = signer(2, ORIGIN).verifier.vkey.encode()


def _swapped(files: dict[str, bytes]) -> None:
    other = f"events/{EVENTS[1].id}"
    for kind in ("leaf", "tlog-proof"):
        files[f"{FIRST}.{kind}"] = files[f"{other}.{kind}"]


@pytest.mark.parametrize("change", [_leaf, _root, _key, _swapped])
def test_what_was_changed_is_found(
    program: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    files = bundle_files(EVENTS)
    before = dict(files)
    change(files)
    assert files != before
    assert verify(program, tmp_path, files)[0] == 1
