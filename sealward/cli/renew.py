"""Renews the certificates of the administrator and of `clients/` once, then ends.

The supervisor runs it when the next renewal is due, so that it need not carry the cryptography and
gRPC libraries itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sealward.cli.certificates import ensure_admin, renew_clients, spread_vkeys
from sealward.cli.connect import Admin
from sealward.cli.errors import CliError
from sealward.cli.suite import Suite, write_private
from sealward.kit.tls import Material

LONGEST_SECONDS = 3600.0
"""The folder is looked at this often even when nothing is due."""


def renew(
    suite: Suite, admin: Material | None = None, *, anew: bool = False
) -> tuple[list[str], list[str]]:
    """Renew what is due, or everything, and write down when the next is.

    Return users renewed and refused.
    """
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub

    material = admin or ensure_admin(suite, anew=anew)
    spread_vkeys(suite)
    renewed, refused, due = renew_clients(
        suite, lambda: UserServiceStub(Admin(suite, material).channel("gateway")), anew=anew
    )
    due = min(due, material.half_life, time.time() + LONGEST_SECONDS)
    write_private(suite.renewal_file, f"{due:.0f}".encode("ascii"))
    return renewed, refused


def main(argv: Sequence[str] | None = None) -> int:
    """Renew once; exit status 1 when it cannot be done now."""
    parser = argparse.ArgumentParser(prog="sealward-renew")
    parser.add_argument("--dir", type=Path, required=True)
    suite = Suite.at(parser.parse_args(argv).dir)
    os.umask(0o077)
    try:
        renewed, refused = renew(suite)
    except CliError as error:
        print(json.dumps({"event": "renewal.failed", "reason": error.message}))  # noqa: T201
        return int(error.code)
    print(  # noqa: T201 - standard output is the supervisor's log
        json.dumps({"event": "renewal.done", "renewed": renewed, "refused": refused})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
