"""`sealward factor`: second factors of people, and proving one anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.options import DEFAULT, Dir, Json, User
from sealward.cli.output import emit
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1.factor_pb2_grpc import FactorServiceStub

app = typer.Typer(help="Second factors of people.", no_args_is_help=True)

_CALL_SECONDS = 15.0

Code = Annotated[
    str, typer.Option("--code", help="One-time password or recovery code.", prompt="code")
]


@app.command("list")
def list_(user: User, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Say which factors a user has."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "listing factors") as (stub, who):
        found = stub.ListFactors(
            pb.ListFactorsRequest(), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    keys = [
        {
            "credential_id": key.credential_id, "name": key.name, "created": key.created,
            "last_used": key.last_used, "suspended": key.suspended,
        }
        for key in found.keys
    ]  # fmt: skip
    emit(
        {
            "totp": found.totp, "recovery_codes": found.recovery_codes, "proven": found.proven,
            "keys": keys,
        },
        as_json=as_json,
        text=f"one-time passwords: {'yes' if found.totp else 'no'}\n"
        f"recovery codes left: {found.recovery_codes}"
        + "".join(
            f"\nsecurity key: {key.name} ({key.credential_id})"
            f"{', suspended: remove it' if key.suspended else ''}"
            for key in found.keys
        ),
    )  # fmt: skip


@app.command()
def begin(user: User, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Draw a secret for an authenticator app; it counts once `confirm` got a code of it."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "drawing a secret") as (stub, who):
        made = stub.BeginTotp(pb.BeginTotpRequest(), timeout=_CALL_SECONDS, metadata=who.metadata)
    emit(
        {"secret": made.secret, "uri": made.uri},
        as_json=as_json,
        text=f"secret: {made.secret}\n{made.uri}\n"
        f"  then: sealward factor confirm --user {user} --code CODE",
    )


@app.command()
def confirm(user: User, code: Code, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Confirm the secret with a code of it; print the recovery codes, once."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "confirming the secret") as (stub, who):
        done = stub.ConfirmTotp(
            pb.ConfirmTotpRequest(code=code), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    _codes(list(done.recovery_codes), as_json=as_json)


@app.command("recovery-codes")
def recovery_codes(user: User, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Draw new recovery codes; the old ones are worth nothing any more."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "drawing recovery codes") as (stub, who):
        done = stub.NewRecoveryCodes(
            pb.NewRecoveryCodesRequest(), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    _codes(list(done.recovery_codes), as_json=as_json)


@app.command()
def remove(user: User, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Remove one's own factors; needs a second factor that was proven lately."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "removing factors") as (stub, who):
        stub.RemoveFactors(pb.RemoveFactorsRequest(), timeout=_CALL_SECONDS, metadata=who.metadata)
    emit({"removed": True}, as_json=as_json, text="removed")


@app.command("remove-key")
def remove_key(
    user: User,
    credential_id: Annotated[str, typer.Argument(metavar="ID", help="See `factor list`.")],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Remove a security key of one's own; needs a second factor that was proven lately."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "removing the key") as (stub, who):
        stub.RemoveWebauthn(
            pb.RemoveWebauthnRequest(credential_id=credential_id),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        )
    emit({"removed": credential_id}, as_json=as_json, text="removed")


@app.command()
def reset(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who lost the factor.")],
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Remove the factors of somebody who lost them, and end their sessions."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, acting, "resetting factors") as (stub, who):
        done = stub.ResetFactors(
            pb.ResetFactorsRequest(user=name), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    emit(
        {"user": name, "revoked": done.revoked},
        as_json=as_json,
        text=f"removed; sessions ended: {done.revoked}",
    )


@app.command("step-up")
def step_up(user: User, code: Code, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Prove the second factor anew, for what needs a fresh one."""
    from sealward.api.gateway.v1 import factor_pb2 as pb

    with _factors(directory, user, "stepping up") as (stub, who):
        done = stub.StepUp(
            pb.StepUpRequest(code=code), timeout=_CALL_SECONDS, metadata=who.metadata
        )
    emit({"fresh_until": done.fresh_until}, as_json=as_json, text="proven")


@contextmanager
def _factors(directory: Path, acting: str, what: str) -> Iterator[tuple[FactorServiceStub, Acting]]:
    from sealward.api.gateway.v1.factor_pb2_grpc import FactorServiceStub
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield FactorServiceStub(who.channel), who


def _codes(codes: list[str], *, as_json: bool) -> None:
    emit(
        {"recovery_codes": codes},
        as_json=as_json,
        text="recovery codes, each for one login; keep them apart from the device:\n  "
        + "\n  ".join(codes),
    )
