"""`python -m services.audit`."""

from __future__ import annotations

import sys

import sealward.kit.lean  # noqa: F401 - before any library
from sealward.kit.runner import run
from services.audit.app import build
from services.audit.settings import AuditSettings

if __name__ == "__main__":
    sys.exit(run("audit", AuditSettings, build))
