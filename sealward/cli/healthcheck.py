"""`sealward healthcheck`: for probes and scripts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit
from sealward.cli.suite import Suite


class Service(StrEnum):
    """The services."""

    GATEWAY = "gateway"
    INFERENCE = "inference"
    AUDIT = "audit"
    KEYS = "keys"


def healthcheck(
    service: Annotated[Service, typer.Argument(metavar="SERVICE", help="Which service.")],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Exit 0 when a service is ready, 1 when it says it is not, 3 when it does not answer."""
    from sealward.cli.connect import Admin, is_serving
    from sealward.cli.rpc import calling

    name = str(service)
    with calling(f"asking {name}"), Admin(Suite.at(directory)).channel(name) as channel:
        ready = is_serving(channel, seconds=5.0)
    if not ready:
        raise CliError(f"{name} is not ready", advice="sealward status", service=name)
    emit({"service": name, "ready": True}, as_json=as_json, text=f"{name} is ready")
