"""`sealward keys`: the key provider, its key-encryption keys, and how they are replaced."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import typer

from sealward.cli import keybackup, keydestruction, keyrotation
from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    import grpc

    from sealward.api.keys.v1.rotation_pb2 import KeyEncryptionKey

app = typer.Typer(help="Keys.", no_args_is_help=True)

_MEANING = {
    "degraded": "keys that are leased go on to their limit; new keys and certificates are refused",
    "sealed": "no key can be used; it recovers by itself when the provider does",
}
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "vault-sealed": "unseal Vault",
        "vault-unreachable": "start Vault, or look at the network between here and there",
        "vault-untrusted": "compare Vault's certificate with the CA file (--vault-ca)",
        "vault-slow": "look at Vault's load and storage",
        "vault-standby": "look at Vault's cluster: it has no active node",
        "vault-failing": "look at Vault's log",
        "vault-login-refused": "make a new login: sealward vault secret-id",
    }
)
"""What to do about each trouble of the provider."""


@app.callback()
def _keys() -> None:
    """State of the key provider; rotation of its keys."""


app.command()(keyrotation.rotate)
app.command()(keyrotation.rewrap)
app.command()(keybackup.backup)
app.command()(keybackup.restore)
app.command()(keybackup.drill)
app.command("unlock-with")(keybackup.unlock_with)
app.add_typer(keydestruction.app, name="destroy")


@app.command()
def status(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show the provider and the versions of its keys; exit 1 unless it is ready."""
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    admin = Admin(Suite.at(directory))
    with calling("asking keys"), admin.channel("keys") as channel:
        found = provider_status(channel, CALL_SECONDS)
        backups = keybackup.state(channel, CALL_SECONDS)
    if found["state"] != "ready":
        why = f": {found['trouble']} since {found['since']}" if found["trouble"] else ""
        raise CliError(
            f"the key provider {found['provider']} is {found['state']}{why}"
            f" ({_MEANING.get(found['state'], '')})",
            advice=ADVICE.get(found["trouble"], "see logs/keys.log"),
            **found,
        )
    rows = [_row(key) for key in keyrotation.list_keys(admin)]
    if as_json:
        emit({**found, "keys": rows, "backup": backups or None}, as_json=True)
        return
    where = " (single-host: keys and data live on one machine)" if found["single_host"] else ""
    line(f"{found['provider']}: {found['state']}{where}")
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
    if text := keybackup.state_text(backups):
        line(text)


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


def provider_status(channel: grpc.Channel, seconds: float) -> dict[str, Any]:
    """Ask the keys service for the state of its provider; raise grpc.RpcError."""
    from sealward.api.keys.v1 import keys_pb2
    from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
    from sealward.cli.times import show_nanos

    answer = KeysServiceStub(channel).GetStatus(keys_pb2.GetStatusRequest(), timeout=seconds)
    return {
        "provider": answer.provider,
        "state": answer.state,
        "single_host": answer.single_host,
        "trouble": answer.trouble,
        "since": show_nanos(answer.since * 1_000_000_000) if answer.since else "",
    }
