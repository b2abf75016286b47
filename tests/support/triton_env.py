"""An environment of its own for tritonclient: it pins protobuf below 7 and brings its own stubs.

It lives in the cache, keyed by what is installed; Sealward itself is built and installed anew
for each run, so that the wheel that a client gets is what is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
TRITONCLIENT = "tritonclient[grpc]==2.73.0"
_BUILD = "hatchling>=1.27"


def python() -> Path:
    """Return the interpreter; skips the test where the package index cannot be reached."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [TRITONCLIENT, _BUILD, *project["dependencies"]]
    key = sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    folder = cache / f"tritonclient-{key}"
    interpreter = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=60)
        said = _pip(interpreter, wanted)
        if said:
            pytest.skip(
                f"{TRITONCLIENT} cannot be installed: the stock client has not been run"
                f" (pip: {said.splitlines()[-1]})"
            )
        done.touch()
    said = _pip(
        interpreter,
        ["--no-deps", "--no-build-isolation", "--force-reinstall", str(REPOSITORY)],
    )
    assert not said, said
    return interpreter


def _pip(interpreter: Path, arguments: Sequence[str]) -> str:
    """Install; return what pip said when it failed."""
    done = subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
        check=False,
    )
    return (done.stdout or "pip failed") if done.returncode else ""
