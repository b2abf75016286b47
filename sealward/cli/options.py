"""Options that every verb shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.suite import DEFAULT_DIR

Dir = Annotated[
    Path,
    typer.Option(
        "--dir", metavar="DIR", help="Folder of the suite.", envvar="SEALWARD_DIR",
        show_envvar=False,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
User = Annotated[str, typer.Option("--user", metavar="NAME", help="User, of `clients/NAME`.")]

DEFAULT = DEFAULT_DIR
