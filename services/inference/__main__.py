"""`python -m services.inference`."""

from __future__ import annotations

import sys

import sealward.kit.lean  # noqa: F401 - before any library
from sealward.kit.runner import run
from services.inference.app import build
from services.inference.settings import InferenceSettings

if __name__ == "__main__":
    sys.exit(run("inference", InferenceSettings, build))
