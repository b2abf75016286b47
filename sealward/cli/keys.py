"""`sealward keys`: state of the key provider."""

from __future__ import annotations

import typer

from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit
from sealward.cli.suite import Suite

app = typer.Typer(help="Keys.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """State of the key provider."""


@app.command()
def status(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show the provider and its state; exit 1 unless it is ready."""
    from sealward.api.keys.v1 import keys_pb2
    from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("asking keys"), Admin(Suite.at(directory)).channel("keys") as channel:
        answer = KeysServiceStub(channel).GetStatus(
            keys_pb2.GetStatusRequest(), timeout=CALL_SECONDS
        )
    where = "single-host: keys and data live on one machine" if answer.single_host else ""
    if answer.state != "ready":
        raise CliError(
            f"the key provider is {answer.state}",
            advice="see logs/keys.log",
            provider=answer.provider,
            state=answer.state,
            single_host=answer.single_host,
        )
    emit(
        {
            "provider": answer.provider,
            "state": answer.state,
            "single_host": answer.single_host,
        },
        as_json=as_json,
        text=f"{answer.provider}: {answer.state}" + (f" ({where})" if where else ""),
    )
