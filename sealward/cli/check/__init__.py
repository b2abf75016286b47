"""`sealward check`: the safeguards check, and `check verify` for whoever is given its report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.errors import Exit
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit, line

app = typer.Typer(help="Test every safeguard on the running deployment.")


class Profile(StrEnum):
    """Which rule a run is held against."""

    CURRENT = "current"
    NPRM = "nprm"


Vkey = Annotated[
    Path | None, typer.Option("--vkey", metavar="FILE", help="The log's verifier key.")
]


@app.callback(invoke_without_command=True)
def check(
    context: typer.Context,
    profile: Annotated[
        Profile, typer.Option("--profile", help="The rule in force, or the one proposed in 2025.")
    ] = Profile.CURRENT,
    row: Annotated[
        list[str] | None, typer.Option("--row", metavar="ID", help="Only this; may be repeated.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Make no principal and no call of theirs.")
    ] = False,
    disrupt: Annotated[
        bool,
        typer.Option("--disrupt", help="Also rows that hold a service still for some seconds."),
    ] = False,
    review_hours: Annotated[
        int, typer.Option("--review-hours", min=0, help="Emergency access is reviewed within.")
    ] = 72,
    patience: Annotated[
        int, typer.Option("--patience", min=0, help="Seconds that a row may wait.")
    ] = 30,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the signed report here.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option("--diff", metavar="LAST", help="Compare with an earlier report.")
    ] = None,
    fips: Annotated[
        bool, typer.Option("--fips", help="List cryptographic libraries and modes instead.")
    ] = False,
    endpoints: Annotated[
        Path | None,
        typer.Option("--endpoints", metavar="FILE", help="Addresses, when there is no folder."),
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", metavar="DIR", help="The administrator's key, cert and ca."),
    ] = None,
    vkey: Vkey = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Test every safeguard on the running deployment and sign the report.

    Exit 0 when no row failed (what could not be tested is counted), 1 when one did.
    """
    if context.invoked_subcommand is not None:
        return
    if fips:
        from sealward.cli.check.fips import libraries, text

        found = libraries()
        emit(found, as_json=as_json, text=text(found))
        return
    from sealward.cli.check.run import Asked, run_check
    from sealward.cli.check.showing import text as shown

    if report is not None:
        check_writable(report)
    made = run_check(
        Asked(
            directory=directory, profile=str(profile), rows=row or [], read_only=read_only,
            disrupt=disrupt, review_hours=review_hours,
            patience=patience, diff=diff, endpoints=endpoints,
            credentials=credentials, vkey=vkey,
        ),
        told=(lambda text: line(text, err=True)),
    )  # fmt: skip
    if report is not None:
        import json

        from sealward.cli.suite import write_private

        write_private(report, json.dumps(made, indent=2, ensure_ascii=False).encode() + b"\n")
    emit(made, as_json=as_json, text=shown(made))
    if made["counts"]["failed"]:
        raise typer.Exit(Exit.FAILED)


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A report.")],
    vkey: Vkey = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Verify a report with the log's verifier key alone. Works offline; exit 1 when it fails."""
    from sealward.cli.check.run import read_report

    found, receipt = read_report(file, vkey, directory)
    counts = found["counts"]
    value = {
        "verified": True,
        "event_id": receipt.event_id.hex(),
        "log_index": receipt.index,
        "origin": receipt.checkpoint.origin,
        "ended": found.get("ended"),
        "profile": found.get("profile"),
        "counts": counts,
    }
    emit(
        value,
        as_json=as_json,
        text=f"the log vouches for this report: entry {receipt.index} of "
        f"{receipt.checkpoint.origin}\n  {found.get('ended')}, profile {found.get('profile')}: "
        + ", ".join(f"{count} {state}" for state, count in counts.items()),
    )
