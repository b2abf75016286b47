"""`sealward audit`: reading the record, proving it, verifying it. One file a verb or two.

`verify` needs the files alone; the other verbs ask the audit service as the local administrator,
and that reading is itself recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from sealward.cli.audit import (
    accounting,
    events,
    explain,
    export,
    hold,
    logs,
    patient,
    prove,
    reconcile,
    reindex,
    review,
    verify,
    witness,
)

app = typer.Typer(help="Read, prove and verify the audit log.", no_args_is_help=True)

_VERBS: dict[str, Callable[..., Any]] = {
    "query": events.query,
    "tail": events.tail,
    "show": events.show,
    "prove": prove.prove,
    "accounting": accounting.accounting,
    "bursts": review.bursts,
    "activity": review.activity,
    "export": export.export,
    "explain": explain.explain,
    "verify": verify.verify,
    "reconcile": reconcile.reconcile,
    "reindex": reindex.reindex,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_verb)
app.add_typer(review.app, name="review")
app.add_typer(logs.app, name="logs")
app.add_typer(hold.app, name="hold")
app.add_typer(patient.app, name="patient")
app.add_typer(witness.app, name="witness")
