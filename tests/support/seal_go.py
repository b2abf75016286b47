"""Tink and age, the Go implementations, on what Sealward seals."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support import tlog_go

SOURCE = Path(__file__).parent.parent / "conformance" / "seal_go"


class GoTools:
    """Both programs, built into a folder; skips the test where there is no Go."""

    def __init__(self, folder: Path) -> None:
        (folder / "entries").mkdir()
        (folder / "rootkey").mkdir()
        self._entries = tlog_go.build(folder / "entries", "./entries", SOURCE)
        self._rootkey = tlog_go.build(folder / "rootkey", "./rootkey", SOURCE)

    def entries(
        self,
        key: bytes,
        segment: bytes,
        origin: str,
        leaves: Sequence[bytes] = (),
        texts: Sequence[tuple[bytes, bytes]] = (),
    ) -> tuple[list[bytes | None], list[bytes]]:
        """Open leaves and seal (prefix, text) pairs with Tink.

        Returns what the leaves hold, None for those that do not open, and the leaves made.
        """
        document = {
            "branch_key": key,
            "segment": segment,
            "origin": origin,
            "leaves": leaves,
            "prefixes": [prefix for prefix, _ in texts],
            "texts": [text for _, text in texts],
        }
        done = subprocess.run(
            [self._entries],
            input=json.dumps(document, default=lambda data: base64.b64encode(data).decode()),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        opened = [
            None if item["error"] else base64.b64decode(item["text"] or "")
            for item in answer["opened"]
        ]
        return opened, [base64.b64decode(leaf) for leaf in answer["leaves"]]

    def age(self, mode: str, secret: Path, data: bytes) -> bytes | None:
        """`open` or `seal` with age; None when it does not open."""
        done = subprocess.run(
            [self._rootkey, mode, secret], input=data, capture_output=True, check=False, timeout=120
        )
        return None if done.returncode else done.stdout
