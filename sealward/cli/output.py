"""How results are printed: JSON for scripts, plain lines and tables for people.

Colour and box characters only on a terminal. `rich` is imported when a table is wanted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealward.cli.errors import CliError, usage


def emit(value: Any, *, as_json: bool, text: str = "") -> None:
    """Print `value` as JSON, or `text`."""
    if as_json:
        line(json.dumps(value, indent=2, ensure_ascii=False))
    elif text:
        line(text)


def line(text: str = "", *, err: bool = False) -> None:
    """Print one line to standard output or standard error."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def check_writable(file: Path) -> None:
    """Raise CliError for a file to write that is a folder, or whose folder cannot be written to."""
    if file.is_dir():
        raise usage(f"{file} is a folder", "name a file")
    if file.exists():
        if not os.access(file, os.W_OK):
            raise usage(f"{file} cannot be written")
    else:
        check_folder(file)


def check_folder(file: Path) -> None:
    """Raise CliError when the folder that a new file goes into is not there, or is closed."""
    if not file.parent.is_dir():
        raise usage(f"there is no folder {file.parent}", "make it first, or name another file")
    if not os.access(file.parent, os.W_OK):
        raise usage(f"{file} cannot be written")


def fail(error: CliError, *, as_json: bool) -> int:
    """Print an error with its advice; return the exit code."""
    if as_json:
        line(json.dumps(error.as_json(), indent=2, ensure_ascii=False))
    else:
        line(f"error: {error.message}", err=True)
        for text in _particulars(error.details):
            line(f"  {text}", err=True)
        if error.advice:
            line(f"  try: {error.advice}", err=True)
    return int(error.code)


def _particulars(details: Mapping[str, Any]) -> Iterator[str]:
    """What a refusal says beside its message: the field, the reason, where it is recorded."""
    for name in ("field", "reason", "incident"):
        if details.get(name):
            yield f"{name}: {details[name]}"
    if details.get("event_id"):
        entry = details.get("log_index")
        place = "" if entry is None else f", entry {entry} of the log"
        yield f"event: {details['event_id']}{place}"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", empty: str = ""
) -> None:
    """Print rows under column headings; `empty` instead when there are none."""
    if not rows:
        line(empty or "nothing found")
        return
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain(columns, texts, title)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in texts:
        # Text, not str: a value may hold what rich would take for markup.
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(shown)


_STYLES: Mapping[str, str] = {
    "ok": "green", "ready": "green", "running": "green", "met": "green", "yes": "green",
    "denied": "yellow", "warning": "yellow", "restarting": "yellow", "not ready": "yellow",
    "failed": "red", "down": "red", "unreachable": "red",
}  # fmt: skip


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    widths = [
        max(len(column), *(len(row[at]) for row in rows)) for at, column in enumerate(columns)
    ]
    if title:
        line(title)
    for row in (columns, *rows):
        line(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
