"""`sealward healthcheck`: for probes and scripts."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    import grpc


class Service(StrEnum):
    """The services."""

    GATEWAY = "gateway"
    INFERENCE = "inference"
    AUDIT = "audit"
    KEYS = "keys"


_PARTS = ("keystore", "keys", "audit", "inference", "sessions", "models", "disk")
"""What services say the readiness of, besides their own."""


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
        missing = [] if ready else [part for part in _PARTS if _is_missing(channel, part)]
    if not ready:
        why = f": {', '.join(missing)}" if missing else ""
        raise CliError(
            f"{name} is not ready{why}", advice="sealward status", service=name, missing=missing
        )
    emit({"service": name, "ready": True}, as_json=as_json, text=f"{name} is ready")


def _is_missing(channel: grpc.Channel, part: str) -> bool:
    """True when the service has this part and it is not ready."""
    import grpc

    from sealward.cli.connect import is_serving

    try:
        return not is_serving(channel, 5.0, part)
    except grpc.RpcError:
        # NOT_FOUND: it has no such part.
        return False
