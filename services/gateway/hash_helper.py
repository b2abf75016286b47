"""The process that computes password hashes: `python -m services.gateway.hash_helper`.

A process of its own, with a low priority: one hash takes 64 MiB and all cores for some tenths
of a second. A thread of low priority would not do, because it could be put aside while it holds the
interpreter's lock that calls need. One request a line of standard input, one answer a line of
standard output; it ends with its parent. What it is sent stands in no file and no log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

import argon2

from sealward.kit.hardening import harden

_NICE = 10
_PR_SET_PDEATHSIG = 1


def answer(hasher: argon2.PasswordHasher, request: dict[str, str]) -> dict[str, str | bool]:
    """Compute one answer."""
    if "secret" not in request:
        return {"hash": hasher.hash(request["password"])}
    try:
        return {"right": hasher.verify(request["secret"], request["password"])}
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return {"right": False}


def main() -> int:
    """Answer until standard input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Ctrl-C is for the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    harden()
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    hasher = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
    for line in sys.stdin.buffer:
        said = answer(hasher, json.loads(line))
        sys.stdout.buffer.write(json.dumps(said).encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
