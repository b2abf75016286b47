"""Public Go programs that tests run, each built once into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"


def go_program(module: str) -> Path:
    """Return the program of `PATH/NAME@VERSION`, or skip, loudly, where it cannot be built."""
    path, _, version = module.partition("@")
    name = path.rpartition("/")[2]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    folder = cache / f"{name}-{version}"
    program = folder / name
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"Go is not installed: {name} has not been run (https://go.dev/dl)")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [go, "install", module],
        env={**os.environ, "GOBIN": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"{name} cannot be built: it has not been run (no Go module proxy?)")
    return program
