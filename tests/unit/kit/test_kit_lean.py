"""What a service's process does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import importlib, sys
importlib.import_module("services.{name}.__main__")
import pydantic.plugin._loader as loader
print("rich.console" in sys.modules, list(loader.get_plugins()))
"""


@pytest.mark.parametrize("name", ["keys", "audit", "inference", "gateway"])
def test_services_load_neither_rich_nor_plugins(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(name=name)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split(maxsplit=1) == ["False", "[]\n"]
