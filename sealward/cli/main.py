"""The command `sealward`: registers the nouns and turns errors into advice and exit codes.

Start-up stays fast: modules of verbs import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from sealward.cli import (
    access,
    audit,
    certs,
    check,
    client,
    config,
    deid,
    demo,
    doctor,
    factor,
    healthcheck,
    identity,
    infer,
    interrupt,
    keys,
    login,
    membership,
    model,
    policy,
    quota,
    session,
    status,
    up,
    user,
    vault,
)
from sealward.cli.errors import CliError, Exit
from sealward.cli.output import fail, line

_OS_ADVICE = "sealward doctor, by the account that owns the folder"
_HELP = "Runs safeguarded inference and proves every call."


def build() -> typer.Typer:
    """Return the command with all of its verbs."""
    app = typer.Typer(
        name="sealward",
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_version)
    verbs: dict[str, Callable[..., Any]] = {
        "up": up.up, "down": up.down, "status": status.status, "doctor": doctor.doctor,
        "login": login.login, "logout": login.logout, "infer": infer.infer, "demo": demo.demo,
        "healthcheck": healthcheck.healthcheck,
    }  # fmt: skip
    for name, verb in verbs.items():
        app.command(name)(verb)
    nouns = {
        "user": user.app, "session": session.app, "factor": factor.app,
        "client": client.app, "identity": identity.app, "access": access.app,
        "policy": policy.app, "membership": membership.app, "quota": quota.app, "deid": deid.app,
        "model": model.app, "audit": audit.app, "keys": keys.app, "certs": certs.app,
        "vault": vault.app, "config": config.app, "check": check.app,
    }  # fmt: skip
    for name, noun in nouns.items():
        app.add_typer(noun, name=name)
    return app


def _version(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if version:
        from sealward import __version__

        line(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every file that it makes is closed to other accounts."""
    os.umask(0o077)
    # gRPC's own log lines would land between ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    interrupt.watch()
    try:
        build()(standalone_mode=True)
    except CliError as error:
        sys.exit(fail(error, as_json="--json" in sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except OSError as error:
        # A full disk, a folder of another account: the system's own words, not a trace.
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        sys.exit(fail(CliError(what, advice=_OS_ADVICE), as_json="--json" in sys.argv[1:]))


if __name__ == "__main__":
    main()
