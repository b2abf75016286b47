"""`sealward model`: the models that can be asked."""

from __future__ import annotations

import typer

from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

app = typer.Typer(help="Models.", no_args_is_help=True)


@app.callback()
def _model() -> None:
    """The models that can be asked."""


@app.command("list")
def list_(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List models with version, state and digest."""
    from sealward.api.inference.v1 import inference_pb2
    from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("listing models"), Admin(Suite.at(directory)).channel("inference") as channel:
        answer = InferenceServiceStub(channel).ListModels(
            inference_pb2.ListModelsRequest(), timeout=CALL_SECONDS
        )
    rows = [
        {
            "name": m.name,
            "version": m.version,
            "state": inference_pb2.ModelState.Name(m.state).removeprefix("MODEL_STATE_").lower(),
            "digest": m.digest.hex(),
            "reason": m.reason,
        }
        for m in answer.models
    ]
    if as_json:
        emit({"models": rows}, as_json=True)
        return
    table(
        ["model", "version", "state", "digest", "reason"],
        [[r["name"], r["version"], r["state"], r["digest"][:16] + "…", r["reason"]] for r in rows],
        empty="no models",
    )
