"""A headless Chromium, spoken to over its debugging pipe: no driver, no port, no network."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 60.0


class Browser:
    """One browser process; one page at a time. Requests that a page makes are in `requests`."""

    def __init__(self, folder: Path) -> None:
        program = next((found for name in _NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(
                "Chromium is not installed: the evidence page has not been run in a browser"
                " (apt-get install chromium)"
            )
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            [
                "/bin/bash", "-c", command, program, "--headless", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
                "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self._before: str | None = None
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, script: str = "document.documentElement.dataset.verdict") -> Any:
        """Open a page; return what the script gives as soon as it gives something."""
        self.requests.clear()
        self._call("Page.navigate", url=page.as_uri())
        return self.run(script)

    def run(self, script: str) -> Any:
        """Run a script in the page until it gives something, at most 15 s."""
        ends = time.monotonic() + 15
        while time.monotonic() < ends:
            answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
            if answer["result"].get("value") is not None:
                return answer["result"]["value"]
            time.sleep(0.005)
        return None

    def before_page(self, script: str | None) -> None:
        """Run a script in every page before its own; None = no longer."""
        if self._before is not None:
            self._call("Page.removeScriptToEvaluateOnNewDocument", identifier=self._before)
            self._before = None
        if script is not None:
            added = self._call("Page.addScriptToEvaluateOnNewDocument", source=script)
            self._before = added["identifier"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def _call(self, method: str, **params: Any) -> Any:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
