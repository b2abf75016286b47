"""`python -m benchmarks.soak`: rotate everything many times under load; exit 1 on any failure.

What stands behind `--` goes with the first `sealward up`, as `-- --vault ADDRESS`.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.soak.rotation import Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is rotated")
    parser.add_argument("--dir", type=Path, help="a new folder to keep; a temporary one without it")
    parser.add_argument("up", nargs="*", help="arguments of the first `sealward up`, behind --")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="sealward-soak-") as scratch:
        folder = options.dir or Path(scratch) / "data"
        report = Soak(folder, say, options.up).run(options.rounds)
    print(json.dumps(report.as_json(), indent=1))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
