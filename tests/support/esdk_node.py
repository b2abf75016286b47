"""AWS's Encryption SDK for JavaScript: installed once into the cache, run by Node.js."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "conformance" / "esdk_node"
_MANIFESTS = ("package.json", "package-lock.json")


class NodeSdk:
    """Runs jobs (program.cjs says which)."""

    def __init__(self, modules: Path) -> None:
        self._environ = {**os.environ, "NODE_PATH": str(modules)}

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Do jobs in order in one process; return their answers."""
        done = subprocess.run(
            ["node", SOURCE / "program.cjs"],
            input=json.dumps(jobs, default=_text),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=self._environ,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers


def _text(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def install() -> NodeSdk:
    """Return the SDK; skips the test where there is no Node.js or it cannot be installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(
            "Node.js is not installed: AWS's Encryption SDK has not been run on our objects"
            " (apt-get install nodejs npm)"
        )
    key = sha256(b"".join((SOURCE / name).read_bytes() for name in _MANIFESTS)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    folder = cache / f"esdk-node-{key}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _MANIFESTS:
            shutil.copy(SOURCE / name, folder)
        # Only what the lock file has the digest of; nothing that comes with it is run.
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        if done.returncode:
            pytest.skip(
                "AWS's Encryption SDK for JavaScript cannot be installed: it has not been run on"
                f" our objects (npm: {(done.stderr or done.stdout).strip().splitlines()[-1:]})"
            )
        (folder / "complete").touch()
    return NodeSdk(folder / "node_modules")
