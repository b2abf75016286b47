"""No memory of a process on a disk: keys live in it. What Linux offers without privileges."""

from __future__ import annotations

import ctypes
import os
import resource

from sealward.kit.errors import StartupError

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core dump, no ptrace by the same account, files closed to others; raise StartupError."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _prctl(_PR_SET_DUMPABLE, 0) != 0:
        raise StartupError("prctl(PR_SET_DUMPABLE) failed")


def dumpable() -> bool:
    """True when a crash could write the memory of this process into a core file.

    A handler behind a pipe in core_pattern is not held by the limit, hence the second condition.
    """
    return resource.getrlimit(resource.RLIMIT_CORE)[0] != 0 or _prctl(_PR_GET_DUMPABLE, 0) != 0


def _prctl(option: int, argument: int) -> int:
    found: int = ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)
    return found
