"""`sealward audit logs`: which logs there are, how one follows another, how long each is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite
from sealward.cli.times import parse_span, show_nanos

if TYPE_CHECKING:
    from sealward.api.audit.v1.logs_pb2 import LogInfo
    from sealward.api.audit.v1.logs_pb2_grpc import LogAdminServiceStub

LONG_SECONDS = 3600.0
"""For work over a whole log."""

app = typer.Typer(
    help="List the logs; end, archive and purge them; change a log's key.",
    invoke_without_command=True,
)

Tenant = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose log.")]
Origin = Annotated[str, typer.Argument(metavar="ORIGIN", help="Name of the log.")]


@contextmanager
def log_admin(directory: Dir, what: str) -> Iterator[LogAdminServiceStub]:
    """Open the service of the logs as the local administrator; raise CliError."""
    from sealward.api.audit.v1.logs_pb2_grpc import LogAdminServiceStub
    from sealward.cli.connect import Admin
    from sealward.cli.rpc import calling

    with calling(what), Admin(Suite.at(directory)).channel("audit") as channel:
        yield LogAdminServiceStub(channel)


@app.callback()
def main(
    context: typer.Context,
    tenant: Tenant = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List the logs; end, archive and purge them; change a log's key."""
    if context.invoked_subcommand is None:
        list_(tenant, directory, as_json)


@app.command("list")
def list_(tenant: Tenant = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List the logs, the newest first."""
    from sealward.api.audit.v1.logs_pb2 import ListLogsRequest

    with log_admin(directory, "listing the logs") as logs:
        answer = logs.ListLogs(ListLogsRequest(tenant=tenant), timeout=LONG_SECONDS)
    rows = [_row(log) for log in answer.logs]
    if as_json:
        emit({"logs": rows}, as_json=True)
        return
    names = ("origin", "state", "size", "first", "last", "kept_until", "holds")
    table(names, [[_cell(row[name]) for name in names] for row in rows])


@app.command()
def freeze(
    tenant: Tenant = "",
    announce: Annotated[
        bool, typer.Option("--announce", help="Only make the next log's key known to clients.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """End a tenant's current log and begin the next."""
    from sealward.api.audit.v1.logs_pb2 import FreezeRequest
    from sealward.cli.certificates import spread_vkeys

    with log_admin(directory, "ending the log") as logs:
        # The client folders here have the next log's key before its first receipt.
        answer = logs.Freeze(FreezeRequest(tenant=tenant, announce=True), timeout=LONG_SECONDS)
        spread_vkeys(Suite.at(directory))
        if not announce:
            answer = logs.Freeze(FreezeRequest(tenant=tenant), timeout=LONG_SECONDS)
    shown = {
        "ended": None if announce else _row(answer.ended),
        "successor": answer.successor,
        "successor_vkey": answer.successor_vkey,
    }
    did = "will be followed by" if announce else f"ended with {answer.ended.size} entries; next is"
    emit(shown, as_json=as_json, text=f"{answer.ended.origin} {did} {answer.successor}")


@app.command("rotate-key")
def rotate_key(
    tenant: Tenant = "",
    overlap: Annotated[
        str,
        typer.Option("--overlap", metavar="SPAN", help="How long both keys sign, as 2h or 7d."),
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Give a tenant's current log another signing key; for some days both sign."""
    from sealward.api.audit.v1.logs_pb2 import RotateLogKeyRequest
    from sealward.cli.certificates import spread_vkeys

    seconds = parse_span(overlap) if overlap else 0
    with log_admin(directory, "changing the log's key") as logs:
        answer = logs.RotateLogKey(
            RotateLogKeyRequest(tenant=tenant, overlap_seconds=seconds), timeout=LONG_SECONDS
        )
    spread_vkeys(Suite.at(directory))
    until = show_nanos(answer.overlap_until_unix_nano)
    shown = {
        "origin": answer.origin,
        "old_vkey": answer.old_vkey,
        "new_vkey": answer.new_vkey,
        "overlap_until": until,
    }
    text = f"{answer.new_vkey} signs from now on, the old key beside it until {until}"
    emit(shown, as_json=as_json, text=text)


@app.command()
def archive(origin: Origin, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Make the files of a log that has ended read-only, with a list of their SHA-256."""
    from sealward.api.audit.v1.logs_pb2 import ArchiveRequest

    with log_admin(directory, "archiving the log") as logs:
        answer = logs.Archive(ArchiveRequest(origin=origin), timeout=LONG_SECONDS)
    folder = Suite.at(directory).root / "audit" / answer.folder
    files = {file.path: file.sha256 for file in answer.files}
    emit(
        {"origin": origin, "folder": str(folder), "files": files},
        as_json=as_json,
        text=f"{len(files)} files in {folder}, listed in manifest.json",
    )


@app.command()
def purge(
    origin: Origin,
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="ORIGIN", help="The name of the log once more.")
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Destroy the keys of an archived log whose retention is over. There is no way back."""
    from sealward.api.audit.v1.logs_pb2 import PurgeRequest

    if confirm != origin:
        raise usage(
            "purging makes every entry of the log unreadable for good", f"--confirm {origin}"
        )
    with log_admin(directory, "purging the log") as logs:
        answer = logs.Purge(PurgeRequest(origin=origin, confirm=confirm), timeout=LONG_SECONDS)
    text = f"the keys of {origin} are destroyed; its {answer.log.size} entries still verify"
    emit({"log": _row(answer.log)}, as_json=as_json, text=text)


def _row(log: LogInfo) -> dict[str, Any]:
    from sealward.api.audit.v1.logs_pb2 import LogState

    return {
        "origin": log.origin,
        "tenant": log.tenant,
        "year": log.year,
        "state": LogState.Name(log.state).removeprefix("LOG_STATE_").lower(),
        "size": log.size,
        "first": _time(log.first_unix_nano),
        "last": _time(log.last_unix_nano),
        "kept_until": _time(log.retained_until_unix_nano),
        "holds": list(log.holds),
        "folder": log.folder,
        "checkpoint": log.checkpoint.decode(),
        "vkeys": list(log.vkeys),
    }


def _time(nanos: int) -> str | None:
    return show_nanos(nanos) if nanos else None


def _cell(value: Any) -> object:
    return " ".join(value) if isinstance(value, list) else value
