"""A wall clock for child processes that a test can set while they run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")
_PAGE = 4096


class SettableClock:
    """`environ` is what a child process is started with; skips the test without a C compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler: no clock that can be set (apt-get install gcc libc6-dev)")
        library = folder / "clock.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        self._file = folder / "clock"
        self._file.write_bytes(bytes(_PAGE))
        self.environ = {"LD_PRELOAD": str(library), "TEST_CLOCK_FILE": str(self._file)}

    def set(self, seconds: int) -> None:
        """Let the clock be off by so many seconds from now on."""
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))
