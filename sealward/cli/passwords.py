"""Where a command takes a password from: a file or the terminal, never the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from sealward.cli.errors import unreadable, usage
from sealward.cli.output import line

_LONGEST = 1024


def read_password(file: Path | None, prompt: str, *, twice: bool = False) -> str:
    """Read a password from a file (one line) or, without one, ask for it on the terminal."""
    if file is not None:
        return _from_file(file)
    if not sys.stdin.isatty():
        raise usage("there is no terminal to ask for the password", "--password-file FILE")
    import getpass

    password = getpass.getpass(f"{prompt}: ")
    if twice and getpass.getpass(f"{prompt} again: ") != password:
        raise usage("the two passwords differ")
    return password


def _from_file(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        # Said, not refused: orchestrators mount secrets that are open within their container.
        if file.stat().st_mode & 0o077:
            line(f"warning: {file} is open to other accounts: chmod 600 {file}", err=True)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password or len(password) > _LONGEST:
        raise usage(f"{file} must hold the password on one line")
    return password
