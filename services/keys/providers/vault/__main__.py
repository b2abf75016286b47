"""What `sealward vault` runs: sets Vault up, hands out logins, prints policies. Output is JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sealward.kit.enroll import private_folder, write_private
from sealward.kit.errors import StartupError
from services.keys.files import read_private
from services.keys.providers.vault.config import Target, read_addresses, refuse_unsafe
from services.keys.providers.vault.login import ROLE, SHREDDER_ROLE
from services.keys.providers.vault.names import DEFAULT_PREFIX, PREFIX, Names
from services.keys.providers.vault.setup import (
    POLICIES,
    Administrator,
    Plan,
    SetupError,
    policy_text,
)

FAILED, USAGE, UNAVAILABLE = 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit status, as those of `sealward`."""
    os.umask(0o077)
    arguments = _parser().parse_args(argv)
    verbs: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "setup": _setup, "secret-id": _secret_ids, "policies": _policies,
    }  # fmt: skip
    try:
        result = verbs[arguments.verb](arguments)
    except (ValueError, StartupError) as error:
        return _end({"error": str(error)}, USAGE)
    except SetupError as error:
        return _end({"error": str(error)}, UNAVAILABLE if error.unavailable else FAILED)
    return _end(result, 0)


def _setup(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(
        _names(arguments),
        arguments.trust_domain,
        tuple(arguments.cidr),
        arguments.secret_id_uses,
        arguments.secret_id_life,
        arguments.login_ca.read_text(encoding="ascii") if arguments.login_ca else "",
        arguments.login_name,
    )
    admin = _administrator(arguments)
    made = admin.set_up(plan)
    handed = _hand_out(admin, plan.names, arguments)
    return {"made": made, "prefix": plan.names.prefix, **handed}


def _secret_ids(arguments: argparse.Namespace) -> dict[str, Any]:
    return _hand_out(_administrator(arguments), _names(arguments), arguments)


def _policies(arguments: argparse.Namespace) -> dict[str, Any]:
    prefix = _names(arguments).prefix
    return {"policies": {Names(prefix).policy(n): policy_text(n, prefix) for n in POLICIES}}


def _hand_out(admin: Administrator, names: Names, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the logins into the folder; the secret ids wrapped."""
    seconds = arguments.wrap_minutes * 60
    written: dict[str, str] = {
        "vault.json": json.dumps({"prefix": names.prefix, "namespace": arguments.namespace}),
    }
    for role, prefix in ((ROLE, ""), (SHREDDER_ROLE, "shredder-")):
        written[f"{prefix}role-id"] = admin.role_id(names, role)
        written[f"{prefix}wrapped-secret-id"] = admin.wrapped_secret_id(names, role, seconds)
    out = private_folder(arguments.out)
    for name, text in written.items():
        write_private(out / name, text.encode() + b"\n")
    admin.close()
    return {
        "role_id": written["role-id"],
        "credentials": str(out),
        "wrapped_for_seconds": seconds,
    }


def _administrator(arguments: argparse.Namespace) -> Administrator:
    refuse_unsafe({name: v for name, v in os.environ.items() if name != "VAULT_TOKEN"})
    try:
        token = read_private(arguments.token_file, frozenset({0, os.geteuid()}))
    except FileNotFoundError:
        raise ValueError(f"{arguments.token_file} does not exist") from None
    target = Target(
        read_addresses(arguments.addr),
        arguments.namespace,
        arguments.ca_cert,
        timeout=15.0,
    )
    return Administrator(target, token.decode("ascii").strip())


def _names(arguments: argparse.Namespace) -> Names:
    if not PREFIX.fullmatch(arguments.prefix):
        raise ValueError("a prefix is made of small letters, digits and hyphens, with / between")
    return Names(arguments.prefix)


def _end(result: dict[str, Any], code: int) -> int:
    print(json.dumps(result))  # noqa: T201 - the result is the output
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sealward vault")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("setup", "secret-id", "policies"):
        verb = verbs.add_parser(name)
        verb.add_argument("--prefix", default=DEFAULT_PREFIX)
        if name == "policies":
            continue
        verb.add_argument("--addr", required=True)
        verb.add_argument("--token-file", type=Path, required=True)
        verb.add_argument("--ca-cert", type=Path)
        verb.add_argument("--namespace", default="")
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--wrap-minutes", type=int, default=60)
        if name == "setup":
            verb.add_argument("--trust-domain", default="sealward.local")
            verb.add_argument("--cidr", action="append", default=[])
            verb.add_argument("--secret-id-uses", type=int, default=0)
            verb.add_argument("--secret-id-life", default="0")
            verb.add_argument("--login-ca", type=Path)
            verb.add_argument("--login-name", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
