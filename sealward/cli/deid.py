"""`sealward deid`: codes of people in de-identified exports that belong to a project."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import CliError, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1.deid_pb2_grpc import DeidServiceStub

app = typer.Typer(help="Codes of people in de-identified exports.", no_args_is_help=True)

ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Name of the project.")]


@app.command("list")
def list_(acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List the projects and how many codes they have."""
    from sealward.api.gateway.v1 import deid_pb2 as pb

    with _codes(directory, acting, "listing projects") as (stub, more):
        found = stub.ListProjects(pb.ListProjectsRequest(), **more).projects
    if as_json:
        rows = [{"project": p.name, "created": p.created, "codes": p.codes} for p in found]
        emit({"projects": rows}, as_json=True)
        return
    table(
        ["project", "codes", "since"],
        [[p.name, p.codes, _time(p.created)] for p in found],
        empty="no projects",
    )


@app.command()
def reidentify(
    project: ProjectName,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Code in the export.")],
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Say whom a code stands for: a privacy-officer's (--as), recorded with the patient."""
    from sealward.api.gateway.v1 import deid_pb2 as pb

    try:
        with _codes(directory, acting, "leading the code back") as (stub, more):
            found = stub.Reidentify(pb.ReidentifyRequest(project=project, code=code), **more)
    except CliError as error:
        if error.details.get("reason") == "IDENTITY_FORBIDDEN":
            error.advice = "as a privacy-officer: --as NAME"
        raise
    item = found.item
    value = {
        "project": project, "code": code, "kind": item.kind, "identifier": item.identifier,
        "patient": found.patient, "event_id": str(uuid.UUID(bytes=item.event_id)),
    }  # fmt: skip
    emit(value, as_json=as_json, text=f"{item.kind} {found.patient or item.identifier}")


@app.command()
def drop(
    project: ProjectName,
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="PROJECT", help="The project's name once more.")
    ] = "",
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Destroy a project's table: nobody leads its codes back after that."""
    from sealward.api.gateway.v1 import deid_pb2 as pb

    if confirm != project:
        raise usage(
            "dropping a project makes its codes codes of nobody for good", f"--confirm {project}"
        )

    with _codes(directory, acting, "dropping the project") as (stub, more):
        codes = stub.DropProject(pb.DropProjectRequest(project=project), **more).codes
    emit(
        {"project": project, "codes": codes},
        as_json=as_json,
        text=f"dropped {project}; codes destroyed: {codes}",
    )


@contextmanager
def _codes(
    directory: Path, acting: str, what: str
) -> Iterator[tuple[DeidServiceStub, dict[str, Any]]]:
    from sealward.api.gateway.v1.deid_pb2_grpc import DeidServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield DeidServiceStub(who.channel), {"timeout": CALL_SECONDS, "metadata": who.metadata}


def _time(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
