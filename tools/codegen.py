"""Regenerate sealward/api from protos/. Run by `make protos` in the codegen environment.

The proto folder is the Python package path, so the generated imports need no repair.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Write sealward/api anew; return protoc's exit status."""
    protos = sorted(
        str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto")
    )
    api = ROOT / "sealward" / "api"
    shutil.rmtree(api, ignore_errors=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iprotos",
            "--python_out=.",
            "--mypy_out=.",
            "--grpc_python_out=.",
            "--mypy_grpc_out=.",
            *protos,
        ],
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        return done.returncode
    for stub in api.rglob("*_pb2_grpc.py"):
        # A file without services gives an empty stub that would only cost an import.
        if "class " not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    for folder in [api, *(p for p in api.rglob("*") if p.is_dir() and p.name != "__pycache__")]:
        name = ".".join(folder.relative_to(ROOT).parts)
        (folder / "__init__.py").write_text(f'"""Generated package {name}; see protos/."""\n')
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
