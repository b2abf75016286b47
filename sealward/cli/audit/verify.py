"""`sealward audit verify`: needs the files and the public key, nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.audit.common import PolicyFile, read_policy, read_vkeys
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.suite import Suite


def verify(
    log: Annotated[
        Path | None, typer.Option("--log", metavar="DIR", help="The log; else the suite's.")
    ] = None,
    vkey: Annotated[
        Path | None, typer.Option("--vkey", metavar="FILE", help="Its verifier key.")
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Verify this receipt, not the whole log."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="A checkpoint seen earlier; may be given again."
        ),
    ] = None,
    policy: PolicyFile = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="Go on after the checkpoint in this file; keep the new one there.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is published from now on.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Verify the log, or one receipt, with the public key alone. Works offline.

    With --policy it must also be cosigned as the policy says; its log keys count beside those of
    --vkey. With --state only what came since is read, and that it continues what was there: verify
    all of it now and then, too. Exit 1 names the first bad entry.
    """
    from sealward.cli.audit.verifying import Verification, verify_receipt_command

    suite = Suite.at(directory)
    asked = read_policy(policy) if policy is not None else None
    if vkey is None and asked is not None and asked.logs:
        vkeys = [entry.verifier for entry in asked.logs]
    else:
        vkeys = read_vkeys(vkey or suite.vkey_file)
    if receipt is not None:
        if state is not None or follow:
            raise usage("a receipt is verified by itself", "leave --state and --follow out")
        result, text = verify_receipt_command(receipt, vkeys, asked)
        emit(result, as_json=as_json, text=text)
        return
    verification = Verification(
        log or suite.log_dir, vkeys, checkpoint or [], asked, state, progress=sys.stderr.isatty()
    )
    for result, text in verification.follow() if follow else [verification.once()]:
        if follow and as_json:
            line(json.dumps(result))
        else:
            emit(result, as_json=as_json, text=text)
