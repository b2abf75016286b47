"""`sealward audit reindex`: the index is made anew from the log, and must be what it was."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sealward.cli.audit.logs import LONG_SECONDS, log_admin
from sealward.cli.audit.verifying import progress_bar
from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit


def reindex(
    log: Annotated[
        str, typer.Option("--log", metavar="ORIGIN", help="Which log; the current one without it.")
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Make the index of a log anew and compare it with what it was; exit 1 if it was another."""
    from sealward.api.audit.v1.logs_pb2 import ReindexRequest, ReindexResponse

    last = ReindexResponse()
    with (
        log_admin(directory, "making the index anew") as logs,
        progress_bar(sys.stderr.isatty() and not as_json) as report,
    ):
        for last in logs.Reindex(ReindexRequest(origin=log), timeout=LONG_SECONDS):
            if report is not None:
                report(last.done, last.size)
    shown = {
        "origin": last.origin,
        "entries": last.size,
        "digest": last.digest.hex(),
        "before": last.before.hex(),
        "same": last.digest == last.before,
    }
    emit(shown, as_json=as_json, text=f"{last.size} entries, digest {last.digest.hex()}")
    if last.digest != last.before:
        raise CliError(
            "the index was not what the log says; now it is",
            advice="look who may write to the audit service's folder",
            before=last.before.hex(),
        )
