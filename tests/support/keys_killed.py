"""The keys service, killed (SIGKILL) by itself around the n-th checkpoint that its witness keeps.

`python -m tests.support.keys_killed before|after N`: before it is on the disk, or after that and
before the cosignature leaves.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from sealward.kit.runner import run
from services.keys import app
from services.keys.settings import KeysSettings
from services.keys.witness import folder

_real = folder.write_durable
_left = [int(sys.argv[2])]


def _write(path: Path, data: bytes) -> None:
    counts = path.name == "checkpoint"
    _left[0] -= counts
    due = counts and _left[0] == 0
    if due and sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    _real(path, data)
    if due:
        os.kill(os.getpid(), signal.SIGKILL)


folder.write_durable = _write

if __name__ == "__main__":
    raise SystemExit(run("keys", KeysSettings, app.build, own_certificate=True))
