"""Unlocks the keystore with a key in a PKCS#11 token; the key never leaves it.

The token is used by a process of its own, which is ended when it takes too long: see hsm_helper.py.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.seal.errors import UnlockError


@dataclass(frozen=True, slots=True)
class Hsm:
    """A token and a key in it. `seconds` bounds one use. An Unlock (services.keys.unlock)."""

    module: Path
    token: str
    key: str
    pin_file: Path
    seconds: float

    @property
    def file_name(self) -> str:
        """Where the root key is, sealed to the token (see keystore.py)."""
        return "root.jwe"

    def seal(self, root: bytes) -> bytes:
        """Return the root key as a JWE; raise StartupError when the token cannot be used."""
        return self._use("seal", root)

    def open(self, sealed: bytes) -> bytes:
        """Return the root key; raise UnlockError: another key, or the file was changed.

        Raises StartupError when the token cannot be used.
        """
        return self._use("open", sealed)

    def _use(self, verb: str, data: bytes) -> bytes:
        request = {
            "verb": verb,
            "module": str(self.module),
            "token": self.token,
            "key": self.key,
            "pin_file": str(self.pin_file),
            "data": base64.b64encode(data).decode("ascii"),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "services.keys.hsm_helper"],
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                # A module may print what it likes there: a log is no place for it.
                stderr=subprocess.DEVNULL,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StartupError(
                f"the token {self.token} did not answer within {self.seconds:.0f} s"
            ) from None
        try:
            answer = json.loads(done.stdout)
            if "data" in answer:
                return base64.b64decode(answer["data"])
        except ValueError:
            raise StartupError(
                f"the PKCS#11 module ended with status {done.returncode} and no answer"
            ) from None
        if "broken" in answer:
            raise UnlockError("the key in the token does not open it")
        raise StartupError(str(answer["error"]))
