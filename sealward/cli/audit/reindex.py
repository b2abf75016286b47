"""`sealward audit reindex`: the index is made anew from the log, and must be what it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from sealward.cli.audit.logs import LONG_SECONDS, log_admin
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
        _progress_bar(wanted=sys.stderr.isatty()) as report,
    ):
        for last in logs.Reindex(ReindexRequest(origin=log), timeout=LONG_SECONDS):
            report(last.done, last.size)
    shown: dict[str, Any] = {
        "origin": last.origin,
        "entries": last.size,
        "digest": last.digest.hex(),
        "before": last.before.hex(),
    }
    if last.digest != last.before:
        raise CliError(
            "the index was not what the log says; now it is",
            advice="look who may write to the audit service's folder",
            **shown,
        )
    emit(shown, as_json=as_json, text=f"{last.size} entries, digest {last.digest.hex()}")


@contextmanager
def _progress_bar(*, wanted: bool) -> Iterator[Callable[[int, int], object]]:
    if not wanted:
        yield lambda _done, _size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("indexing", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("indexing")
        yield lambda done, size: bar.update(task, completed=done, total=size)
