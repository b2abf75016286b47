"""Builds and runs the Go program that verifies logs and receipts without Sealward's code."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "conformance" / "tlog_go"


def build(directory: Path, package: str = ".", source: Path = SOURCE) -> Path:
    """Return a program, built into `directory`; skips the test where there is no Go to do it.

    Of the source here the package `.` verifies a log, `./writelog` writes one.
    """
    go = shutil.which("go")
    if go is None:
        pytest.skip(
            "Go is not installed: the foreign log verifier has not been run (https://go.dev/dl)"
        )
    fetched = subprocess.run(
        [go, "mod", "download"], cwd=source, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip("its Go modules cannot be fetched: a foreign verifier has not been run")
    program = directory / "program"
    subprocess.run([go, "build", "-o", program, package], cwd=source, check=True, timeout=170)
    return program


def verify(program: Path, log: Path, vkey: Path, *arguments: str | Path) -> tuple[int, str]:
    """Run the program; return its exit status and all of its output."""
    done = subprocess.run(
        [program, "-log", log, "-vkey", vkey, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr
