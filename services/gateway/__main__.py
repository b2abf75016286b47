"""`python -m services.gateway`."""

from __future__ import annotations

import sys

import sealward.kit.lean  # noqa: F401 - before any library
from sealward.kit.runner import run
from services.gateway.app import Gateway
from services.gateway.settings import GatewaySettings

if __name__ == "__main__":
    sys.exit(run("gateway", GatewaySettings, Gateway))
