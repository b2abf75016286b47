"""Real keys and inference processes, and a caller with the gateway's certificate."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from sealward.api.common.v1.batch_pb2 import Call, Reply
from sealward.api.inference.v1.inference_pb2 import InferRequest, InferResponse, ListModelsRequest
from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll, write_private
from sealward.kit.tls import Credentials
from sealward.seal.rootkey import new_identity

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER = "/sealward.api.inference.v1.InferenceService/Infer"


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """One service process."""

    def __init__(self, name: str, folder: Path, **settings: object) -> None:
        self.name = name
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.settings = settings
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        # What Python runs.
        self.program = ["-m", f"services.{name}"]

    @property
    def data(self) -> Path:
        return self.folder / self.name

    def start(self) -> Service:
        before = self.count("started")
        process = self.launch()
        until(lambda: self.count("started") > before or process.poll() is not None)
        assert process.poll() is None, self.log.read_text()
        return self

    def launch(self) -> subprocess.Popen[bytes]:
        settings: dict[str, object] = {
            "ADDRESS": self.address,
            "METRICS_ADDRESS": "127.0.0.1:0",
            "DATA_DIR": self.data,
            "ENROLL_DIR": self.folder / "enroll",
            "AUDIT_ADDRESS": "127.0.0.1:9",
            "DRAIN_SECONDS": 2,
            **self.settings,
        }
        environment = {n: v for n, v in os.environ.items() if not n.startswith("SEALWARD_")}
        environment |= {
            f"SEALWARD_{self.name.upper()}_{key}": str(value) for key, value in settings.items()
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    def end(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(20)
        finally:
            process.kill()

    def count(self, event: str) -> int:
        return self.log.read_text().count(f'"event": "{event}"') if self.log.exists() else 0


class Pair:
    """Keys and inference, and what the gateway would use to talk to inference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_private(folder / "unlock", new_identity().encode())
        self.keys = Service("keys", folder, UNLOCK_FILE=folder / "unlock")
        self.inference = Service(
            "inference", folder, KEYS_ADDRESS=self.keys.address, START_SECONDS=20
        )
        self._credentials: dict[str, Credentials] = {}

    def start(self) -> Pair:
        self.keys.start()
        self.inference.start()
        return self

    def end(self) -> None:
        self.inference.end()
        self.keys.end()

    def channel(self, name: str = "gateway") -> grpc.Channel:
        """A channel with an enrolled certificate: `gateway`, `audit` or `admin`."""
        if name not in self._credentials:
            credentials = self._credentials[name] = Credentials()
            credentials.install(enroll(self.folder / "enroll", name, 20))
        return Channels(
            self._credentials[name], self.inference.address, "inference.sealward.local"
        ).get()

    def models(self) -> dict[str, tuple[int, str]]:
        """State and reason by name."""
        stub = InferenceServiceStub(self.channel())
        answer = stub.ListModels(ListModelsRequest(), timeout=20, wait_for_ready=True)
        return {m.name: (m.state, m.reason) for m in answer.models}

    def stream(self) -> InferStream:
        return InferStream(self.channel())


class InferStream:
    """The stream of batches, as the gateway would hold it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._out: queue.SimpleQueue[InferRequest | None] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        call: grpc.StreamStreamMultiCallable[InferRequest, InferResponse]
        call = channel.stream_stream(
            INFER,
            request_serializer=InferRequest.SerializeToString,
            response_deserializer=InferResponse.FromString,
        )
        self.answers: Iterator[InferResponse] = call(self._requests(), wait_for_ready=True)

    def _requests(self) -> Iterator[InferRequest]:
        while (batch := self._out.get()) is not None:
            yield batch

    def ask(
        self, bodies: Sequence[bytes], *, method: str = MODEL_INFER, timeout_ms: int = 20_000
    ) -> list[Reply]:
        """Send one batch; return its replies in the order of the calls."""
        ids = [next(self._ids) for _ in bodies]
        self._out.put(
            InferRequest(
                calls=[
                    Call(id=number, method=method, body=body, timeout_ms=timeout_ms)
                    for number, body in zip(ids, bodies, strict=True)
                ]
            )
        )
        replies: dict[int, Reply] = {}
        while len(replies) < len(ids):
            for reply in next(self.answers).replies:
                assert reply.id not in replies
                replies[reply.id] = reply
        return [replies[number] for number in ids]

    def close(self) -> None:
        self._out.put(None)
