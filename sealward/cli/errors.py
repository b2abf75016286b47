"""What a command prints when it cannot do what was asked: one line, advice, an exit code.

Imports the standard library only: the supervisor uses it too.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any


class Exit(IntEnum):
    """Exit codes that scripts rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3


class CliError(Exception):
    """A command that ends without its result.

    `message` says what is wrong, `advice` what to do about it. `details` (code, reason, field,
    event_id and the like) go into the output of `--json`.
    """

    def __init__(
        self, message: str, *, advice: str = "", code: Exit = Exit.FAILED, **details: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.code = code
        self.details = details

    def as_json(self) -> dict[str, Any]:
        """Return the error as `--json` prints it."""
        shown = {key: value for key, value in self.details.items() if value not in (None, "")}
        error: dict[str, Any] = {"message": self.message, "exit": int(self.code), **shown}
        if self.advice:
            error["advice"] = self.advice
        return {"error": error}


def usage(message: str, advice: str = "") -> CliError:
    """Return the error of a command that was called wrongly."""
    return CliError(message, advice=advice, code=Exit.USAGE)


def unreadable(path: Path, error: OSError | UnicodeDecodeError, advice: str = "") -> CliError:
    """Return the error of a file that was named on the command line and cannot be read."""
    why = (error.strerror or "") if isinstance(error, OSError) else "it is not text"
    return usage(f"{path} cannot be read: {why[:1].lower()}{why[1:]}", advice)


def unavailable(message: str, advice: str = "", **details: Any) -> CliError:
    """Return the error of a command whose suite or service does not answer."""
    return CliError(message, advice=advice, code=Exit.UNAVAILABLE, **details)
