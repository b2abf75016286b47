"""The keys service for one command, where the suite does not run.

A suite whose audit service refuses to start runs nothing; what has to be said to the keys service
then is said to it alone. What it records meanwhile waits in its spool for the next start.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sealward.cli.certificates import ensure_admin
from sealward.cli.connect import Admin, wait_serving
from sealward.cli.errors import unavailable
from sealward.cli.processes import specs
from sealward.cli.suite import Suite

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@contextmanager
def keys_running(suite: Suite) -> Iterator[Admin]:
    """Give an administrator whose keys service answers: the suite's, or one for the block alone.

    Raise CliError.
    """
    suite.endpoints()
    if suite.supervisor_pid() is not None:
        yield Admin(suite)
        return
    (spec,) = (spec for spec in specs(suite, os.environ) if spec.name == "keys")
    with (
        (suite.logs / "keys.log").open("ab") as output,
        (suite.logs / "keys.stderr").open("ab") as errors,
    ):
        process = subprocess.Popen(
            spec.argv, env=dict(spec.environ), cwd=suite.root, stdin=subprocess.DEVNULL,
            stdout=output, stderr=errors,
        )  # fmt: skip
    try:
        admin = Admin(suite, ensure_admin(suite, _START_SECONDS))
        _await(suite, admin, process)
        yield admin
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(suite: Suite, admin: Admin, process: subprocess.Popen[bytes]) -> None:
    ready, over = threading.Event(), threading.Event()
    timer = threading.Timer(_START_SECONDS, over.set)
    timer.daemon = True
    timer.start()
    threading.Thread(target=_set_when_ended, args=(process, over), daemon=True).start()
    with admin.channel("keys") as channel:
        wait_serving(channel, over, ready.set)
    timer.cancel()
    if not ready.is_set():
        raise unavailable(
            "the keys service does not start", f"see {suite.logs}/keys.log and keys.stderr"
        )


def _set_when_ended(process: subprocess.Popen[bytes], over: threading.Event) -> None:
    process.wait()
    over.set()
