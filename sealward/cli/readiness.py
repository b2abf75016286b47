"""Waits until a suite that is starting serves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sealward.cli.errors import unavailable
from sealward.cli.suite import SERVICES, Suite

if TYPE_CHECKING:
    from sealward.kit.tls import Material


class Readiness:
    """Enrols the administrator and polls each service's health, in threads of its own."""

    def __init__(self, suite: Suite, seconds: float) -> None:
        self.stop = threading.Event()
        self.done = threading.Event()
        self.serving: set[str] = set()
        self._suite = suite
        self._seconds = seconds
        self._material: Material | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin; `done` is set at the end and `serving` grows on the way."""
        threading.Thread(target=self._run, name="readiness", daemon=True).start()

    def result(self) -> Material:
        """Return the administrator's certificate, or raise what went wrong."""
        if self._error is not None:
            raise self._error
        if self._material is None:
            raise unavailable("the suite did not become ready")
        return self._material

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread
            self._error = error
        self.done.set()

    def _watch(self) -> None:
        from sealward.cli.certificates import ensure_admin
        from sealward.cli.connect import Admin, wait_serving

        self._material = ensure_admin(self._suite, self._seconds)
        admin = Admin(self._suite, self._material)
        threads = [
            threading.Thread(
                target=wait_serving,
                args=(admin.channel(name), self.stop, lambda name=name: self.serving.add(name)),
                daemon=True,
            )
            for name in SERVICES
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
