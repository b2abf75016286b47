"""`sealward audit witness`: how the logs stand with their witnesses; the policy to give away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit, line, table
from sealward.cli.suite import Suite
from sealward.cli.times import show_seconds

if TYPE_CHECKING:
    import grpc

    from sealward.api.audit.v1.cosigning_pb2 import GetCosigningResponse

app = typer.Typer(
    help="Show which checkpoints witnesses have cosigned; the witness policy.",
    invoke_without_command=True,
)


@app.callback()
def main(context: typer.Context, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show which checkpoints witnesses have cosigned."""
    if context.invoked_subcommand is None:
        show(directory, as_json)


@app.command()
def show(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show which checkpoints witnesses have cosigned, and what each witness last said."""
    found = summary(_ask(Suite.at(directory)))
    if as_json:
        emit(found, as_json=True)
        return
    table(
        ("log", "entries", "cosigned", "at", "waits"),
        [
            [log["origin"], log["size"], log["cosigned"], log["cosigned_at"], _wait(log["waiting"])]
            for log in found["logs"]
        ],
    )
    line()
    table(
        ("witness", "state", "counts", "last cosigned", "failures", "url"),
        [
            [w["name"], w["state"] or "not asked", "yes" if w["counts"] else "no",
             w["cosigned_at"], w["failures"], w["url"]]
            for w in found["witnesses"]
        ],
    )  # fmt: skip


@app.command()
def policy(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the policy here.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the witness policy (C2SP tlog-policy) with the current log's keys."""
    if output is not None:
        check_writable(output)
    text = _ask(Suite.at(directory)).policy
    if output is not None:
        output.write_bytes(text)
        emit({"policy": str(output)}, as_json=as_json, text=f"policy: {output}")
    elif as_json:
        emit({"policy": text.decode("utf-8", "backslashreplace")}, as_json=True)
    else:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()


@app.command()
def forget(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="Name of the log.")],
    confirm: Annotated[
        str, typer.Option("--confirm", metavar="ORIGIN", help="The same name again.")
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Let the built-in witness forget a log, so that a smaller one may be taken on; recorded.

    Only after a loss that no backup brings back: what protects against a rollback before this
    moment is given up. Works while the suite is stopped. See docs/runbooks/witness.md.
    """
    from sealward.api.keys.v1 import witness_pb2
    from sealward.api.keys.v1.witness_pb2_grpc import WitnessServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.keysalone import keys_running
    from sealward.cli.rpc import calling

    if confirm != origin:
        raise usage("--confirm repeats the name of the log", f"--confirm {origin}")
    with (
        keys_running(Suite.at(directory)) as admin,
        calling("forgetting the log"),
        admin.channel("keys") as channel,
    ):
        WitnessServiceStub(channel).ForgetLog(
            witness_pb2.ForgetLogRequest(origin=origin, confirm=confirm), timeout=CALL_SECONDS
        )
    emit({"forgotten": origin}, as_json=as_json, text=f"the built-in witness forgot {origin}")


def ask_state(channel: grpc.Channel, seconds: float) -> dict[str, Any]:
    """Return how things stand, as `show --json` prints it; raise grpc.RpcError."""
    from sealward.api.audit.v1.cosigning_pb2 import GetCosigningRequest
    from sealward.api.audit.v1.cosigning_pb2_grpc import CosigningServiceStub

    answer = CosigningServiceStub(channel).GetCosigning(GetCosigningRequest(), timeout=seconds)
    return summary(answer)


def summary(answer: GetCosigningResponse) -> dict[str, Any]:
    """Return an answer as `--json` prints it."""
    return {
        "logs": [
            {
                "origin": log.origin,
                "size": log.size,
                "cosigned": log.cosigned_size,
                "cosigned_at": _time(log.cosigned_unix),
                "waiting": round(log.waiting_seconds, 1),
            }
            for log in answer.logs
        ],
        "witnesses": [
            {
                "name": witness.name,
                "url": witness.url,
                "vkey": witness.vkey,
                "counts": witness.counts,
                "state": witness.state,
                "cosigned_at": _time(witness.cosigned_unix),
                "failures": witness.failures,
            }
            for witness in answer.witnesses
        ],
    }


def one_line(found: dict[str, Any]) -> str:
    """Return the state as `sealward status` prints it."""
    size, cosigned = (sum(log[name] for log in found["logs"]) for name in ("size", "cosigned"))
    waiting = max((log["waiting"] for log in found["logs"]), default=0.0)
    text = f"{cosigned} of {size} entries cosigned"
    if waiting >= 1:
        text += f", the others wait since {waiting:.0f} s"
    troubles = [f"{w['name']} {w['state']}" for w in found["witnesses"] if w["state"] != "ok"]
    return f"{text}; {', '.join(troubles)}" if troubles else text


def _ask(suite: Suite) -> GetCosigningResponse:
    from sealward.api.audit.v1.cosigning_pb2 import GetCosigningRequest
    from sealward.api.audit.v1.cosigning_pb2_grpc import CosigningServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("asking about the witnesses"), Admin(suite).channel("audit") as channel:
        return CosigningServiceStub(channel).GetCosigning(
            GetCosigningRequest(), timeout=CALL_SECONDS
        )


def _time(seconds: int) -> str:
    return show_seconds(seconds) if seconds else ""


def _wait(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else ""
