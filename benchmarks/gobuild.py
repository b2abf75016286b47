"""Builds a small Go program of ours once, into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path


def build(source: Path, name: str) -> Path | None:
    """Return the binary of the Go module at `source`; None where there is no Go."""
    digest = sha256(b"".join(path.read_bytes() for path in sorted(source.iterdir()))).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    binary = cache / f"{name}-{digest[:16]}"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    print(f"building {name} …", file=sys.stderr)
    subprocess.run([go, "build", "-o", str(binary), "."], cwd=source, check=True)
    return binary
