"""A unix socket between a client and PostgreSQL that loses a request or an answer on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

_NAME = ".s.PGSQL.5432"


class Lose(Enum):
    """What is lost next, once: then the connection is closed."""

    NOTHING = 0
    REQUEST = 1
    ANSWER = 2


class Proxy:
    """Forwards connections made to `folder` to those of a server."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder = folder
        self.lose = Lose.NOTHING
        self.lost = 0
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / _NAME))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.socket(socket.AF_UNIX)
                try:
                    upstream.connect(str(self._server / _NAME))
                except OSError:
                    client.close()
                    upstream.close()
                    continue
                for source, target, loss in (
                    (client, upstream, Lose.REQUEST),
                    (upstream, client, Lose.ANSWER),
                ):
                    threading.Thread(
                        target=self._pump, args=(source, target, loss), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, target: socket.socket, loss: Lose) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.lose is loss:
                    self.lose = Lose.NOTHING
                    self.lost += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextlib.contextmanager
def proxied(folder: Path, server: Path) -> Iterator[Proxy]:
    proxy = Proxy(folder, server)
    try:
        yield proxy
    finally:
        proxy.close()
