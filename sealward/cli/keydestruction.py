"""`sealward keys destroy`: keys destroyed on purpose, by two people, after a waiting period."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.keys.v1.destruction_pb2 import Destruction
    from sealward.kit.tls import Material

app = typer.Typer(help="Destroy keys, for good.", no_args_is_help=True)

_CALL_SECONDS = 60.0
_SCHEMA = "sealward/destruction/v1"
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the request, or how it begins.")]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it names no patient.")
]  # fmt: skip
_BLOCKED = {
    "DESTRUCTION_HELD": "a legal hold or the retention period covers it: sealward audit hold list",
    "AUDIT_UNAVAILABLE": "audit does not say whether a hold covers it: sealward status",
    "KEY_IN_USE": "keys have not moved on: sealward keys rewrap",
    "KEYSTORE_UNAVAILABLE": "the key provider refuses it; with Vault: bring a login of the shredder"
    " (sealward vault shredder-login)",
    "NOT_SUPPORTED": "Vault: there is no login of the shredder (sealward vault shredder-login)",
    "clock": "the clock was set by more than an hour: restart the keys service with the right time",
}


@app.command()
def request(
    purpose: Annotated[
        str, typer.Option("--purpose", metavar="NAME", help="Keys of this purpose, as `model`.")
    ],
    reason: Reason,
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="NAME", help="Keys of this tenant.")
    ] = "default",
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Ask that every key of a tenant and purpose be destroyed; another person has to approve."""
    made = ask(Suite.at(directory), acting, tenant, purpose, "", reason)
    emit(value_of(made), as_json=as_json, text=asked_text(made))


@app.command()
def approve(
    destruction: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Approve somebody else's request. It is carried out after the waiting period."""
    with _desk(Suite.at(directory), acting, "approving") as desk:
        found = desk.find(destruction)
        made = desk.call("ApproveDestruction", id=found.id, jws=desk.sign(_statement(found)))
        made = made.destruction
    emit(
        value_of(made),
        as_json=as_json,
        text=f"approved: {_target(made)} is destroyed after {_time(made.due_at)}\n"
        f"  until then: sealward keys destroy cancel {made.id[:12]}",
    )


@app.command()
def cancel(
    destruction: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Call a destruction off, at any time before it is carried out."""
    with _desk(Suite.at(directory), acting, "calling it off") as desk:
        made = desk.call("CancelDestruction", id=desk.find(destruction).id).destruction
    emit(value_of(made), as_json=as_json, text=f"called off: {_target(made)}")


@app.command("list")
def list_(
    open_only: Annotated[bool, typer.Option("--open", help="Only what is not over.")] = False,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List the destructions, newest first."""
    with _desk(Suite.at(directory), acting, "listing destructions") as desk:
        answer = desk.call("ListDestructions", open=open_only)
    if as_json:
        rows = [value_of(found) for found in answer.destructions]
        emit({"destructions": rows, "wait_seconds": answer.wait_seconds}, as_json=True)
        return
    table(
        ["id", "key", "state", "asked by", "approved by", "when", "why"],
        [
            [f.id[:12], _target(f), _state(f) + (f" ({f.blocked})" if f.blocked else ""),
             f.requested_by, f.approved_by, _time(f.ended_at or f.due_at or f.requested_at),
             f.reason]
            for f in answer.destructions
        ],
        empty="nothing is to be destroyed, and nothing was",
    )  # fmt: skip


@app.command()
def show(destruction: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show a destruction and the statement that its two people signed."""
    with _desk(Suite.at(directory), acting, "showing a destruction") as desk:
        found = desk.find(destruction)
    value = value_of(found)
    lines = [f"{name.replace('_', ' ')}: {text}" for name, text in value.items() if text]
    if found.blocked:
        lines.append(f"  {_BLOCKED.get(found.blocked, 'see logs/keys.log')}")
    jws = found.jws.decode()
    emit({**value, "statement": json.loads(jws)}, as_json=as_json, text="\n".join(lines))


def ask(
    suite: Suite, acting: str, tenant: str, purpose: str, resource: str, reason: str
) -> Destruction:
    """Ask for a destruction; return it as it is kept. Raise CliError."""
    statement = {
        "schema": _SCHEMA, "id": secrets.token_hex(16), "tenant": tenant, "purpose": purpose,
        "resource": resource, "reason": reason,
    }  # fmt: skip
    with _desk(suite, acting, "asking for a destruction") as desk:
        made: Destruction = desk.call("RequestDestruction", jws=desk.sign(statement)).destruction
    return made


def asked_text(made: Destruction) -> str:
    """Say what a request is, and what comes next."""
    return (
        f"asked: the destruction of {_target(made)}\n"
        f"  another person: sealward keys destroy approve {made.id[:12]} --as NAME"
    )


@dataclass
class _Desk:
    """Where destructions are asked for: the gateway, or keys for the administrator."""

    stub: Any
    messages: Any
    material: Material
    metadata: tuple[tuple[str, str], ...]

    def call(self, method: str, **fields: Any) -> Any:
        """Call an RPC; raise grpc.RpcError."""
        message = getattr(self.messages, f"{method}Request")(**fields)
        return getattr(self.stub, method)(message, timeout=_CALL_SECONDS, metadata=self.metadata)

    def find(self, begins: str) -> Destruction:
        """Return the destruction whose id begins so; raise CliError."""
        found = [f for f in self.call("ListDestructions").destructions if f.id.startswith(begins)]
        if len(found) != 1 or not begins:
            raise CliError(
                "there is no such destruction" if not found else "more than one id begins so",
                advice="sealward keys destroy list",
            )
        one: Destruction = found[0]
        return one

    def sign(self, statement: dict[str, str]) -> bytes:
        """Sign a statement with the key of the certificate in use."""
        from sealward.kit.statement import sign

        data = json.dumps(statement, separators=(",", ":"), sort_keys=True).encode()
        return sign(data, self.material.key_pem, self.material.chain_pem)


@contextmanager
def _desk(suite: Suite, acting: str, what: str) -> Iterator[_Desk]:
    from sealward.cli.rpc import calling

    with calling(what):
        if acting:
            from sealward.api.gateway.v1 import destruction_pb2 as of_gateway
            from sealward.api.gateway.v1.destruction_pb2_grpc import DestructionServiceStub

            with Acting(suite, acting) as who:
                stub = DestructionServiceStub(who.channel)
                yield _Desk(stub, of_gateway, who.material, who.metadata)
            return
        from sealward.api.keys.v1 import destruction_pb2 as of_keys
        from sealward.api.keys.v1.destruction_pb2_grpc import (
            DestructionServiceStub as KeysStub,
        )
        from sealward.cli.connect import Admin

        admin = Admin(suite)
        with admin.channel("keys") as channel:
            yield _Desk(KeysStub(channel), of_keys, admin.material, ())


def _statement(found: Destruction) -> dict[str, str]:
    """Return what is signed about a request: shown to who signs, so it is made of what is shown."""
    return {
        "schema": _SCHEMA, "id": found.id, "tenant": found.tenant, "purpose": found.purpose,
        "resource": found.resource, "reason": found.reason,
    }  # fmt: skip


def value_of(found: Destruction) -> dict[str, Any]:
    """Return a destruction as it is printed with --json."""
    return {
        "id": found.id,
        "key": _target(found),
        "tenant": found.tenant,
        "purpose": found.purpose,
        "resource": found.resource,
        "reason": found.reason,
        "state": _state(found),
        "blocked": found.blocked,
        "requested_by": found.requested_by,
        "requested_at": _time(found.requested_at),
        "approved_by": found.approved_by,
        "approved_at": _time(found.approved_at),
        "due_at": _time(found.due_at),
        "cancelled_by": found.cancelled_by,
        "ended_at": _time(found.ended_at),
        "destroyed_through_version": found.through,
    }


def _state(found: Destruction) -> str:
    from sealward.api.keys.v1.destruction_pb2 import DestructionState

    return DestructionState.Name(found.state).removeprefix("DESTRUCTION_STATE_").lower()


def _target(found: Destruction) -> str:
    return "/".join(filter(None, (found.tenant, found.purpose, found.resource)))


def _time(seconds: int) -> str:
    from sealward.cli.times import show_nanos

    return show_nanos(seconds * 1_000_000_000) if seconds else ""
