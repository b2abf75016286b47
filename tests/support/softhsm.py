"""A PKCS#11 token in software (SoftHSM), in a folder of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.enroll import write_private
from services.keys.hsm import Hsm

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
PIN = "493817"
# Run apart: a module reads its configuration once a process.
_MAKE = """
import json, sys, pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass
module, token, pin, kind, label, value, extractable = json.loads(sys.argv[1])
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin) as session:
    template = {Attribute.EXTRACTABLE: extractable, Attribute.SENSITIVE: not extractable}
    if value:
        session.create_object({
            Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES,
            Attribute.VALUE: bytes.fromhex(value), Attribute.LABEL: label, Attribute.TOKEN: True,
            Attribute.ENCRYPT: True, Attribute.DECRYPT: True, **template,
        })
    elif kind == "rsa":
        session.generate_keypair(KeyType.RSA, 2048, label=label, store=True)
    else:
        session.generate_key(KeyType.AES, int(kind), label=label, store=True, template=template)
"""


class SoftHsm:
    """A token called `sealward` and its PIN file."""

    def __init__(self, folder: Path, set_variable: Callable[[str, str], Any]) -> None:
        found = next((module for module in MODULES if Path(module).exists()), None)
        if found is None or shutil.which("softhsm2-util") is None:
            pytest.skip(
                "SoftHSM is not installed: no PKCS#11 token was tried (apt-get install softhsm2)"
            )
        pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: no token was tried")
        self.module = Path(found)
        self.pin_file = folder / "pin"
        (folder / "tokens").mkdir(parents=True)
        write_private(self.pin_file, f"{PIN}\n".encode())
        config = folder / "softhsm2.conf"
        config.write_text(
            f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
            "log.level = ERROR\n"
        )
        self.config = config
        set_variable("SOFTHSM2_CONF", str(config))
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "sealward", "--pin", PIN,
             "--so-pin", "12345678"],
            check=True, capture_output=True, env={**os.environ, "SOFTHSM2_CONF": str(config)},
        )  # fmt: skip

    def make(
        self, label: str, kind: str = "256", *, value: bytes = b"", extractable: bool = False
    ) -> str:
        """Make a key: AES of so many bits, `rsa`, or an AES key of a known value."""
        request = [str(self.module), "sealward", PIN, kind, label, value.hex(), extractable]
        subprocess.run(
            [sys.executable, "-c", _MAKE, json.dumps(request)],
            check=True, timeout=60, env={**os.environ, "SOFTHSM2_CONF": str(self.config)},
        )  # fmt: skip
        return label

    def unlock(self, key: str, **changes: Any) -> Hsm:
        """What unlocks with a key of the token."""
        given = {
            "module": self.module, "token": "sealward", "key": key, "pin_file": self.pin_file,
            "seconds": 30.0,
        }  # fmt: skip
        return Hsm(**{**given, **changes})

    def settings(self, key: str) -> dict[str, str]:
        """The settings of a keys service that this token unlocks."""
        prefix = "SEALWARD_KEYS_PKCS11_"
        return {
            f"{prefix}MODULE": str(self.module), f"{prefix}TOKEN": "sealward",
            f"{prefix}KEY": key, f"{prefix}PIN_FILE": str(self.pin_file),
            "SOFTHSM2_CONF": str(self.config),
        }  # fmt: skip
