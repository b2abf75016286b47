"""The keys service with an audit that permits, killed (SIGKILL) by itself while it destroys.

`python -m tests.support.keys_destroying before|after N`: before or after the n-th change that it
makes once a destruction is being carried out: a file that is replaced, or a call of Vault that
changes a key. N = 0: never.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sealward.kit.runner import run
from services.keys import app, auditor, destroying, destructions, halves, keystore
from services.keys.providers.vault import wire
from services.keys.settings import KeysSettings

_when, _left = sys.argv[1], [int(sys.argv[2])]
_under_way = [False]
_CHANGES = ("/rotate", "/config", "/trim", "/login", "/revoke-self")


def _around(real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        due = _under_way[0] and counts(*arguments)
        _left[0] -= due
        due = due and _left[0] == 0
        if due and _when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def _permit(*_arguments: Any, **_named: Any) -> None:
    _under_way[0] = not _named.get("look")


_real_go_on = destroying.Destroyer._go_on


def _go_on(self: Any, found: Any) -> None:
    _under_way[0] = True
    try:
        _real_go_on(self, found)
    finally:
        _under_way[0] = False


auditor.AuditGuard.permit = _permit  # type: ignore[method-assign, assignment]
destroying.Destroyer._go_on = _go_on  # type: ignore[method-assign]
for _module in (destructions, halves, keystore):
    _module.write_durable = _around(_module.write_durable, lambda *_a: True)
wire.Wire.send = _around(  # type: ignore[method-assign]
    wire.Wire.send, lambda _self, _method, path, *_a: path.endswith(_CHANGES)
)

if __name__ == "__main__":
    raise SystemExit(run("keys", KeysSettings, app.build, own_certificate=True))
