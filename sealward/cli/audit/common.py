"""What the verbs of `sealward audit` share: event ids, verifier keys."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealward.cli.errors import unreadable, usage

if TYPE_CHECKING:
    from sealward.tlog.note import Verifier
    from sealward.tlog.policy import CosignedCheckpoint, Policy

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Witness policy (C2SP tlog-policy) that has to be met."
    ),
]
Event = Annotated[str, typer.Argument(metavar="EVENT", help="Event id.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")]


def event_id(text: str) -> bytes:
    """Return the 16 bytes of an event id; raise CliError."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise usage("EVENT must be an event id such as sealward infer prints") from None


def read_vkeys(path: Path) -> list[Verifier]:
    """Return the verifier keys of a file; raise CliError."""
    from sealward.tlog.errors import TlogError
    from sealward.tlog.note import parse_vkeys

    try:
        return parse_vkeys(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "--vkey FILE") from None
    except TlogError:
        raise usage(f"{path} is not a list of verifier keys", "--vkey FILE") from None


def read_policy(path: Path) -> Policy:
    """Return the witness policy of a file; raise CliError."""
    from sealward.tlog.errors import PolicyError
    from sealward.tlog.policy import Policy

    try:
        return Policy.parse(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error, "--policy FILE") from None
    except PolicyError as error:
        raise usage(f"{path} is not a witness policy: {error}", "--policy FILE") from None


def cosigners(found: CosignedCheckpoint) -> list[dict[str, object]]:
    """Return who cosigned a checkpoint, as `--json` prints it."""
    from sealward.cli.times import show_seconds
    from sealward.tlog.policy import printable

    return [
        {
            "witness": printable(c.witness.name),
            "key": c.witness.verifier.name,
            "time": show_seconds(c.time),
        }
        for c in found.cosignatures
    ]
