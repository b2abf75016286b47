"""An interrupt that is raised within a destructor ends what waits."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import os, signal
from sealward.cli import interrupt

class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

interrupt.watch()
lost = Lost()
del lost
print("it was lost", flush=True)
try:
    while True:
        interrupt.pause(0.01)
except KeyboardInterrupt:
    print("and found")
"""


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n") == ["it was lost", "and found", ""]
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode == 0


def test_whoever_ignores_interrupts_goes_on_to() -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from sealward.cli import interrupt; interrupt.watch();"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
