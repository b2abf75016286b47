"""Another gateway process beside that of a suite: the same store, the same user directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sealward.cli.processes import service_environ
from sealward.cli.suite import free_ports
from tests.support.suites import RunningSuite, until


@contextmanager
def second_gateway(suite: RunningSuite) -> Iterator[str]:
    """Start it and wait until it serves; give its address."""
    ports = free_ports(2)
    environ = {
        **service_environ(suite.suite, "gateway", suite.environ),
        "SEALWARD_GATEWAY_ADDRESS": f"127.0.0.1:{ports[0]}",
        "SEALWARD_GATEWAY_METRICS_ADDRESS": f"127.0.0.1:{ports[1]}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    log = suite.suite.root.with_name("second-gateway.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.gateway"],
            env=environ, cwd=suite.suite.root, stdout=output, stderr=output,
        )  # fmt: skip

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
        return any(line.get("event") == "started" for line in lines)

    try:
        until(serves, "the second gateway serves")
        yield f"127.0.0.1:{ports[0]}"
    finally:
        process.terminate()
        process.wait(30)
