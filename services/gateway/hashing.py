"""Where password hashes are computed: in a process of its own (hash_helper.py), or right here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Protocol

import argon2

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

PARAMETERS = argon2.profiles.RFC_9106_LOW_MEMORY
_SECONDS = 30.0
_INHERITED = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LD_LIBRARY_PATH")


class Hasher(Protocol):
    """Computes argon2id. Used by one thread at a time."""

    def hash(self, password: str) -> str:
        """Return the encoded hash (PHC string); may raise OVERLOADED."""

    def verify(self, secret: str, password: str) -> bool:
        """Tell whether a password is that of an encoded hash; may raise OVERLOADED."""

    def close(self) -> None:
        """Release what it holds."""


class LocalHasher:
    """Computes in this process."""

    def __init__(self, parameters: argon2.Parameters = PARAMETERS) -> None:
        self._hasher = argon2.PasswordHasher.from_parameters(parameters)

    def hash(self, password: str) -> str:
        """See Hasher."""
        return self._hasher.hash(password)

    def verify(self, secret: str, password: str) -> bool:
        """See Hasher."""
        try:
            return self._hasher.verify(secret, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    def close(self) -> None:
        """See Hasher."""


class HashProcess:
    """Computes in a process of low priority, which is started anew when it has ended."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        """`seconds` is the longest that one hash may take."""
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def hash(self, password: str) -> str:
        """See Hasher."""
        return str(self._ask({"password": password})["hash"])

    def verify(self, secret: str, password: str) -> bool:
        """See Hasher."""
        return self._ask({"password": password, "secret": secret})["right"] is True

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _ask(self, request: dict[str, str]) -> dict[str, object]:
        process = self._process
        if process is None or process.poll() is not None:
            if process is not None:
                _end(process)
            process = self._process = _start()
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        late = threading.Timer(self._seconds, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            found: dict[str, object] = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            # It was killed, by whomever: nobody is let in, and the next one starts another.
            self.close()
            raise SealwardError(
                Reason.OVERLOADED, "the password could not be checked", retry_after=1.0
            ) from None
        finally:
            late.cancel()
        return found


def _start() -> subprocess.Popen[bytes]:
    environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "services.gateway.hash_helper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        close_fds=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
