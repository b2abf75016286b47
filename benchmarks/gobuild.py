"""Builds a Go program of ours once, into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path


def build(source: Path, name: str, *flags: str) -> Path | None:
    """Return the binary of the Go module in the folder `source`; None where there is no Go.

    It is kept by what the folder holds, so the caches of Go are needed once only.
    """
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.suffix != ".md")
    digest = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    binary = cache / f"{name}-{digest[:16]}"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    print(f"building {name} …", file=sys.stderr)
    unfinished = binary.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run([go, "build", *flags, "-o", unfinished, "."], cwd=source, check=True)
        unfinished.replace(binary)
    finally:
        unfinished.unlink(missing_ok=True)
    return binary
