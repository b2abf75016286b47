"""`sealward keys`: the key provider, its key-encryption keys, and how they are replaced."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import typer

from sealward.cli import keyrotation
from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.keys.v1.rotation_pb2 import KeyEncryptionKey

app = typer.Typer(help="Keys.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """State of the key provider; rotation of its keys."""


app.command()(keyrotation.rotate)
app.command()(keyrotation.rewrap)


@app.command()
def status(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show the provider and the versions of its keys; exit 1 unless it is ready."""
    from sealward.api.keys.v1 import keys_pb2
    from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    admin = Admin(Suite.at(directory))
    with calling("asking keys"), admin.channel("keys") as channel:
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
    rows = [_row(key) for key in keyrotation.list_keys(admin)]
    if as_json:
        emit(
            {
                "provider": answer.provider,
                "state": answer.state,
                "single_host": answer.single_host,
                "keys": rows,
            },
            as_json=True,
        )
        return
    line(f"{answer.provider}: {answer.state}" + (f" ({where})" if where else ""))
    table(
        ["key", "holder", "newest", "made", "days", "opens from"],
        [
            [
                f"{r['tenant']}/{r['purpose']}",
                r["holder"],
                r["newest"],
                r["made"][-1],
                r["age_days"],
                r["lowest"],
            ]
            for r in rows
        ],
        empty="no keys yet",
    )


def _row(key: KeyEncryptionKey) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    made = [dt.datetime.fromtimestamp(at, dt.UTC) if at else None for at in key.made]
    newest = made[-1] if made else None
    return {
        "tenant": key.tenant,
        "purpose": key.purpose,
        "holder": key.holder,
        "lowest": key.lowest,
        "newest": key.newest,
        "made": [at.isoformat(timespec="seconds") if at else None for at in made],
        "age_days": (now - newest).days if newest else None,
    }
