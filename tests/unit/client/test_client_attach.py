"""attach(): a stock client's own stubs, our verification.

The real tritonclient cannot share a process with our protocol stubs; the conformance test runs it.
Here a client of its shape stands for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.api.oip.v2 import open_inference_pb2_grpc as oip_grpc
from sealward.client import (
    ClientError,
    ForkError,
    MissingReceiptError,
    WrongReceiptError,
    attach,
)
from sealward.client.profile import Profile
from sealward.client.tensors import encode_request
from sealward.client.verify import Proof
from tests.support.gateway_double import NAME, GatewayDouble, with_trailer, without

ROWS = np.arange(3, dtype=np.float32).reshape(1, 3)
REQUEST = oip.ModelInferRequest.FromString(encode_request("m", "", "", {"x": ROWS}, None))


class Stock:
    """The shape of tritonclient.grpc.InferenceServerClient."""

    def __init__(self, folder: Path) -> None:
        profile = Profile.load(folder)
        material = profile.material()
        self._channel = grpc.secure_channel(
            profile.gateway,
            grpc.ssl_channel_credentials(material.bundle_pem, material.key_pem, material.chain_pem),
            [("grpc.ssl_target_name_override", NAME)],
        )
        self._client_stub = oip_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, metadata: Any = ()) -> Any:
        return self._client_stub.ModelInfer(request=REQUEST, metadata=metadata, timeout=20)

    def async_infer(self) -> tuple[Any, threading.Event]:
        future = self._client_stub.ModelInfer.future(request=REQUEST, metadata={}.items())
        called = threading.Event()
        future.add_done_callback(lambda _: called.set())
        return future, called

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def stock(folder: Path) -> Iterator[Stock]:
    client = Stock(folder)
    yield client
    client.close()


def test_attach_verifies_and_sends_the_session(
    gateway: GatewayDouble, folder: Path, stock: Stock
) -> None:
    proofs: list[Proof] = []
    attach(stock, folder, patient="mrn-1", on_verified=proofs.append)
    for _ in range(2):
        response = stock.infer((("sealward-purpose", "TREAT"),))
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [0.0, 2.0, 4.0]
    assert [proof.log_index for proof in proofs] == [0, 1]
    sent = gateway.metadata[1]
    assert sent["authorization"] == "Bearer " + "t" * 43
    assert sent["sealward-seq"] == "2"
    assert (sent["sealward-purpose"], sent["sealward-patient"]) == ("TREAT", "mrn-1")
    assert (folder / "checkpoint").exists()


def test_what_the_caller_names_is_not_sent_twice(
    gateway: GatewayDouble, folder: Path, stock: Stock
) -> None:
    attach(stock, folder, purpose="TREAT")
    stock.infer((("sealward-purpose", "ETREAT"), ("authorization", "Bearer mine")))
    assert gateway.metadata[0]["sealward-purpose"] == "ETREAT"
    assert gateway.metadata[0]["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        (without("sealward-receipt-bin"), MissingReceiptError),
        (with_trailer("sealward-log-index", "5"), WrongReceiptError),
    ],
)
def test_attach_refuses_what_is_not_proven(
    gateway: GatewayDouble, folder: Path, stock: Stock, lie: Any, kind: Any
) -> None:
    attach(stock, folder)
    gateway.lie = lie
    with pytest.raises(kind):
        stock.infer()
    future, called = stock.async_infer()
    assert called.wait(20)
    with pytest.raises(grpc.RpcError) as caught:
        future.result()
    # What tritonclient reads of an error before it calls back.
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert kind.__name__ in caught.value.debug_error_string()  # type: ignore[attr-defined]
    assert isinstance(caught.value.__cause__, kind)


def test_attach_notices_a_fork(gateway: GatewayDouble, folder: Path, stock: Stock) -> None:
    attach(stock, folder)
    gateway.grow(4)
    stock.infer()
    gateway.rewrite(9)
    with pytest.raises(ForkError):
        stock.infer()


def test_a_future_is_done_when_it_is_verified(
    gateway: GatewayDouble, folder: Path, stock: Stock
) -> None:
    proofs: list[Proof] = []
    attach(stock, folder, on_verified=proofs.append)
    futures = [stock.async_infer() for _ in range(12)]
    for future, called in futures:
        assert called.wait(20)
        assert future.done()
        assert future.exception() is None
        assert future.result(20).model_name == "m"
        assert future.code() is grpc.StatusCode.OK
    assert len(proofs) == 12


def test_a_cancelled_future_says_so(gateway: GatewayDouble, folder: Path, stock: Stock) -> None:
    attach(stock, folder)
    gateway.hold = threading.Event()
    future, called = stock.async_infer()
    assert not future.done()
    future.cancel()
    assert called.wait(20)
    gateway.hold.set()
    with pytest.raises(grpc.FutureCancelledError):
        future.result()


def test_a_refusal_stays_the_stock_clients_own(
    gateway: GatewayDouble, folder: Path, stock: Stock
) -> None:
    attach(stock, folder)
    gateway.deny = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as caught:
        stock.infer()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    gateway.lie = with_trailer("sealward-log-index", "5")
    with pytest.raises(WrongReceiptError):
        stock.infer()


def test_streams_are_refused(folder: Path, stock: Stock) -> None:
    attach(stock, folder)
    stream = stock._channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(ClientError, match="streams"):
        stream(iter(()))


def test_only_a_stock_client_can_be_attached(folder: Path) -> None:
    with pytest.raises(TypeError, match="tritonclient"):
        attach(object(), folder)
