"""Targets under coverage guidance (atheris, libFuzzer): `python -m tests.fuzz.guided NAME…`.

Each has `--seconds`; without a name all are run. A target begins with the seeds and the kept
inputs; what it finds to reach new code stays in `--work`, for the next run to go on from. Findings
end the run with status 1 and their inputs in files there; `--input FILE` runs one input alone and
shows the traceback.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


def main() -> int:
    """Run targets, each in a process of its own; 1 when one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="targets; all without one")
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--work", type=Path, default=Path(".fuzz"))
    parser.add_argument("--input", type=Path, help="run this input and nothing else")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.alone:
        guide(given.names[0], given.seconds, given.work)
    from tests.fuzz.harness import load

    targets = load()
    unknown = set(given.names) - set(targets)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if given.input:
        print("taken:", targets[given.names[0]].try_one(given.input.read_bytes()))
        return 0
    return run_all(given.names or list(targets), given.seconds, given.work)


def run_all(names: Sequence[str], seconds: int, work: Path) -> int:
    """Run targets one after the other and say a line about each."""
    work.mkdir(exist_ok=True)
    failed = []
    for name in names:
        log = work / f"{name}.log"
        command = [sys.executable, "-m", "tests.fuzz.guided", name, "--alone"]
        with log.open("w") as out:
            done = subprocess.run(
                [*command, "--seconds", str(seconds), "--work", str(work)],
                stdout=out, stderr=out, check=False,
            )  # fmt: skip
        said = log.read_text(errors="replace")
        runs = re.findall(r"stat::number_of_executed_units: +(\d+)", said) or ["?"]
        covered = re.findall(r"\bcov: (\d+)", said) or ["?"]
        verdict = "ok" if done.returncode == 0 else f"FOUND SOMETHING, see {log}"
        print(f"{name:<24} {runs[-1]:>9} inputs  {covered[-1]:>6} branches  {verdict}", flush=True)
        if done.returncode:
            failed.append(name)
    return 1 if failed else 0


def guide(name: str, seconds: int, work: Path) -> None:
    """Hand the process over to libFuzzer, with one target."""
    import atheris

    # What is imported in here is compiled with counters: our own code, and nothing below it.
    with atheris.instrument_imports(include=["sealward", "services"]):
        from tests.fuzz.harness import LONGEST, load

        target = load()[name]

    corpus = work / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds, *target.kept):
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def one(data: bytes) -> None:
        target.try_one(data)

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={max(LONGEST, *map(len, target.seeds))}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={work}/{name}-",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
