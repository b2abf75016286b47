"""`python -m services.keys`."""

import sys

import sealward.kit.lean  # noqa: F401 - before any library
from sealward.kit.runner import run
from services.keys.app import build
from services.keys.settings import KeysSettings

if __name__ == "__main__":
    sys.exit(run("keys", KeysSettings, build, own_certificate=True))
