"""Callers that never pause: the SDK, which verifies every answer, and a stock gRPC client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.api.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from sealward.client import Client
from sealward.client.profile import Profile

MODEL = "breast-cancer"
_PAUSE_SECONDS = 0.02


class Caller:
    """One caller in a thread of its own. `ok` counts answers, `failed` keeps what went wrong."""

    def __init__(self, name: str, connect: Callable[[], Any]) -> None:
        self.name = name
        self.ok = 0
        self.failed: list[str] = []
        self._connect = connect
        self._stop = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def more(self, count: int, seconds: float = 60.0) -> None:
        """Wait for so many further answers."""
        with self._more:
            wanted = self.ok + count
            if not self._more.wait_for(lambda: self.ok >= wanted, seconds):
                self.failed.append(f"{count} answers took longer than {seconds:.0f} s")

    def _run(self) -> None:
        try:
            with self._connect() as ask:
                # A pause keeps the caller from being a test of speed.
                while not self._stop.wait(_PAUSE_SECONDS):
                    self._one(ask)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            self.failed.append(f"{time.time():.1f} the caller ended: {error!r}")

    def _one(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Exception as error:  # noqa: BLE001 - as above
            self.failed.append(f"{time.time():.1f} {_said(error)}")
        else:
            with self._more:
                self.ok += 1
                self._more.notify_all()


def _said(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return repr(error)


class SdkCall:
    """A prediction by the SDK: it verifies the receipt before it returns."""

    def __init__(self, profile: Path, row: list[float]) -> None:
        self._client = Client.from_profile(profile)
        self._rows = np.array([row], np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __call__(self) -> None:
        self._client.infer(MODEL, self._rows)


class StockCall:
    """A prediction by generated stubs on a plain channel, as a caller of one's own makes it.

    It does the one thing that a caller with short-lived certificates has to: when the files of its
    profile have changed it opens another channel.
    """

    def __init__(self, folder: Path, row: list[float]) -> None:
        self._profile = Profile.load(folder)
        self._seen: tuple[int, ...] = ()
        self._channel: grpc.Channel | None = None
        self._request = ModelInferRequest(model_name=MODEL)
        tensor = self._request.inputs.add(name="measurements", datatype="FP32", shape=[1, len(row)])
        tensor.contents.fp32_contents.extend(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()

    def __call__(self) -> None:
        token = self._profile.token()
        GRPCInferenceServiceStub(self._newest()).ModelInfer(
            self._request, metadata=(("authorization", f"Bearer {token}"),), timeout=20
        )

    def _newest(self) -> grpc.Channel:
        folder = self._profile.folder
        files = [folder / name for name in ("ca.pem", "key.pem", "cert.pem")]
        seen = tuple(file.stat().st_mtime_ns for file in files)
        if seen != self._seen or self._channel is None:
            old, self._seen = self._channel, seen
            self._channel = grpc.secure_channel(
                self._profile.gateway,
                grpc.ssl_channel_credentials(*(file.read_bytes() for file in files)),
                [
                    ("grpc.ssl_target_name_override", self._profile.server_name),
                    ("grpc.use_local_subchannel_pool", 1),
                ],
            )
            if old is not None:
                old.close()
        return self._channel
