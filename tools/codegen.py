"""Regenerate sealward/api from protos/, or with --check compare it with what is committed.

Run by `make protos` and `make lint` in the codegen environment, which pins the oldest grpcio-tools
that we support: newer output refuses to run on older runtimes. The proto folder is the Python
package path, so the generated imports need no repair.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> int:
    """Write `out`/sealward/api anew; return protoc's exit status."""
    protos = sorted(str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto"))
    plugins = str(Path(sys.executable).parent)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iprotos",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *protos,
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{plugins}{os.pathsep}{os.environ.get('PATH', '')}"},
        check=False,
    )
    if done.returncode:
        return done.returncode
    api = out / "sealward" / "api"
    for stub in api.rglob("*_pb2_grpc.py"):
        # A file without services gives an empty stub that would only cost an import.
        if "class " not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    for folder in [api, *(p for p in api.rglob("*") if p.is_dir())]:
        name = ".".join(folder.relative_to(out).parts)
        (folder / "__init__.py").write_text(f'"""Generated package {name}; see protos/."""\n')
    return 0


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of files that differ between two trees, or are in one alone."""
    names = {
        str(p.relative_to(tree))
        for tree in (fresh, committed)
        for p in tree.rglob("*.py*")
        if "__pycache__" not in p.parts
    }
    return sorted(
        name
        for name in names
        if not (fresh / name).exists()
        or not (committed / name).exists()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


def main() -> int:
    """Generate or check; 0 = done, 1 = the committed code is not what the protos give."""
    committed = ROOT / "sealward" / "api"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if status := generate(out):
            return status
        fresh = out / "sealward" / "api"
        if "--check" in sys.argv[1:]:
            found = differences(fresh, committed)
            for name in found:
                print(f"sealward/api/{name} is not what protos/ gives: run make protos")
            return 1 if found else 0
        shutil.rmtree(committed, ignore_errors=True)
        shutil.copytree(fresh, committed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
