"""Check README.md against the program: help blocks are real output, links and make targets exist.

A help block is a fenced block whose first line is `$ sealward … --help`; the rest must be what the
command prints at 80 columns. `--write` puts the real output in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```console\n\$ (sealward [^\n]*--help)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")
TARGET = re.compile(r"`make ([a-z-]+)")


def help_text(command: str) -> str:
    """What a help command prints, at 80 columns and without colour."""
    words = command.split()
    program = Path(sys.executable).parent / words[0]
    env = {
        **os.environ,
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "_TYPER_FORCE_DISABLE_TERMINAL": "1",
    }
    done = subprocess.run(
        [str(program), *words[1:]], env=env, capture_output=True, text=True, check=True
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()) + "\n"


def check(path: Path, *, write: bool) -> list[str]:
    """Problems of one page; with `write` help blocks are replaced in place."""
    text = path.read_text()
    problems = []

    def block(found: re.Match[str]) -> str:
        real = help_text(found[1])
        if real != found[2] and not write:
            problems.append(f"{path.name}: the help block of `{found[1]}` is stale")
        return f"```console\n$ {found[1]}\n{real}```"

    fresh = BLOCK.sub(block, text)
    if write and fresh != text:
        path.write_text(fresh)
    problems += [
        f"{path.relative_to(ROOT)}: link to {link}, which is not there"
        for link in LINK.findall(text)
        if not (path.parent / link).exists()
    ]
    makefile = (ROOT / "Makefile").read_text()
    problems += [
        f"{path.name}: there is no make {target}"
        for target in sorted(set(TARGET.findall(text)))
        if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    ]
    return problems


def main() -> int:
    """Check every page; 1 when something is wrong."""
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "services").rglob("README.md"),
    ]
    problems = [p for page in sorted(pages) for p in check(page, write="--write" in sys.argv[1:])]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
