"""Nothing is returned that is not proven: both clients against a gateway that lies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.client import (
    AsyncClient,
    Client,
    DeniedError,
    InvalidRequestError,
    MissingReceiptError,
    WrongReceiptError,
)
from sealward.kit.reasons import Code
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import verify_receipt
from tests.support.gateway_double import (
    MODEL_DIGEST,
    GatewayDouble,
    Sent,
    with_trailer,
    without,
)

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
Infer = Callable[..., Any]


def infer_blocking(folder: Path, *args: Any, **kwargs: Any) -> Any:
    with Client.from_profile(folder) as client:
        return client.infer(*args, **kwargs)


def infer_async(folder: Path, *args: Any, **kwargs: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient.from_profile(folder) as client:
            return await client.infer(*args, **kwargs)

    return asyncio.run(run())


@pytest.fixture(params=[infer_blocking, infer_async], ids=["blocking", "async"])
def infer(request: pytest.FixtureRequest, folder: Path) -> Infer:
    return lambda *args, **kwargs: request.param(folder, *args, **kwargs)


def test_an_answer_comes_with_its_proof(infer: Infer, gateway: GatewayDouble, folder: Path) -> None:
    gateway.grow(5)
    result = infer("m", ROWS.astype(np.float64), id="call-1", patient="mrn-1", purpose="TREAT")
    np.testing.assert_array_equal(result.outputs["x"], ROWS * 2)
    assert result.outputs["x"].dtype == np.float32
    assert (result.log_index, result.model_digest, result.id) == (5, MODEL_DIGEST, "call-1")
    assert result.checkpoint.size == 6
    assert (folder / "checkpoint").read_bytes() == result.checkpoint.note
    assert (folder / "checkpoint").stat().st_mode & 0o777 == 0o600
    sent = gateway.metadata[0]
    assert sent["authorization"] == "Bearer " + "t" * 43
    assert (sent["sealward-seq"], sent["sealward-patient"]) == ("1", "mrn-1")
    assert sent["sealward-purpose"] == "TREAT"
    response = oip.ModelInferResponse(model_name="m", id="call-1")
    verified = verify_receipt(
        result.receipt,
        vkeys=parse_vkeys((folder / "log.vkey").read_text()),
        request_digest=sha256(gateway.requests[0]).digest(),
        response_digest=_response_digest(response, ROWS * 2),
        model_digest=bytes.fromhex(MODEL_DIGEST),
        outcome=Outcome.OK,
    )
    assert verified.index == 5


def _response_digest(response: oip.ModelInferResponse, output: Any) -> bytes:
    response.parameters["sealward_model_digest"].string_param = MODEL_DIGEST
    response.outputs.add(name="x", datatype="FP32", shape=output.shape)
    response.raw_output_contents.append(output.tobytes())
    return sha256(response.SerializeToString()).digest()


@pytest.mark.parametrize("key", ["sealward-receipt-bin", "sealward-event-id", "sealward-log-index"])
def test_an_answer_without_its_receipt_is_not_returned(
    infer: Infer, gateway: GatewayDouble, key: str
) -> None:
    gateway.lie = without(key)
    with pytest.raises(MissingReceiptError):
        infer("m", ROWS)


def _other_answer(sent: Sent) -> Sent:
    response = oip.ModelInferResponse.FromString(sent.body)
    response.raw_output_contents[0] = bytes(len(response.raw_output_contents[0]))
    return replace(sent, body=response.SerializeToString())


def _other_model(sent: Sent) -> Sent:
    response = oip.ModelInferResponse.FromString(sent.body)
    response.parameters["sealward_model_digest"].string_param = "0" * 64
    return replace(sent, body=response.SerializeToString())


def _no_model(sent: Sent) -> Sent:
    response = oip.ModelInferResponse.FromString(sent.body)
    del response.parameters["sealward_model_digest"]
    return replace(sent, body=response.SerializeToString())


def _receipt(change: Callable[[bytes], bytes]) -> Callable[[Sent], Sent]:
    def lie(sent: Sent) -> Sent:
        held = dict(sent.trailers)["sealward-receipt-bin"]
        assert isinstance(held, bytes)
        return with_trailer("sealward-receipt-bin", change(held))(sent)

    return lie


@pytest.mark.parametrize(
    "lie",
    [
        _other_answer,
        _other_model,
        with_trailer("sealward-event-id", "00000000-0000-7000-8000-000000000000"),
        with_trailer("sealward-event-id", "no uuid"),
        with_trailer("sealward-log-index", "77"),
        with_trailer("sealward-log-index", "-1"),
        _receipt(lambda data: data[:-3]),
        _receipt(lambda data: data.replace(b"index 0", b"index 1")),
        _receipt(lambda data: data.replace(b"\n1\n", b"\n2\n")),
        _receipt(lambda data: b""[:0] + b"c2sp.org/tlog-proof@v1\n" + data),
    ],
)
def test_a_wrong_receipt_is_refused(infer: Infer, gateway: GatewayDouble, lie: Any) -> None:
    gateway.lie = lie
    with pytest.raises(WrongReceiptError) as caught:
        infer("m", ROWS)
    assert (
        "receipt" in str(caught.value)
        or "trailing" in str(caught.value)
        or ("checkpoint" in str(caught.value))
    )


def test_an_answer_that_names_no_model_is_refused(infer: Infer, gateway: GatewayDouble) -> None:
    gateway.lie = _no_model
    with pytest.raises(MissingReceiptError, match="digest"):
        infer("m", ROWS)


def test_every_flipped_bit_of_a_receipt_is_noticed(gateway: GatewayDouble, folder: Path) -> None:
    flip = [0]

    def change(data: bytes) -> bytes:
        at = flip[0] % len(data)
        return data[:at] + bytes([data[at] ^ (1 << (flip[0] % 7))]) + data[at + 1 :]

    gateway.lie = _receipt(change)
    with Client.from_profile(folder) as client:
        for flip[0] in range(0, 700, 13):
            with pytest.raises((WrongReceiptError, MissingReceiptError)):
                client.infer("m", {"x": ROWS})


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, DeniedError, "denied"),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError, "failed"),
    ],
)
def test_a_refusal_is_typed_and_its_record_is_proven(
    infer: Infer, gateway: GatewayDouble, status: Any, kind: type[DeniedError], outcome: str
) -> None:
    gateway.deny = status
    with pytest.raises(kind) as caught:
        infer("m", {"x": ROWS})
    error = caught.value
    assert (error.reason, error.field, error.outcome) == ("POLICY_DENIED", "model_name", outcome)
    assert error.code is Code(status.value[0])
    assert error.log_index == 0
    assert error.receipt
    assert error.event_id
    assert error.retry_after == 1.5


def test_a_refusal_with_a_wrong_receipt_is_an_alarm(infer: Infer, gateway: GatewayDouble) -> None:
    gateway.deny = grpc.StatusCode.PERMISSION_DENIED
    gateway.lie = with_trailer("sealward-event-id", "00000000-0000-7000-8000-000000000000")
    with pytest.raises(WrongReceiptError):
        infer("m", {"x": ROWS})


def test_a_refusal_without_receipt_says_so(infer: Infer, gateway: GatewayDouble) -> None:
    gateway.deny = grpc.StatusCode.UNAVAILABLE
    gateway.lie = without("sealward-receipt-bin")
    with pytest.raises(Exception, match="POLICY_DENIED") as caught:
        infer("m", {"x": ROWS})
    assert getattr(caught.value, "receipt", b"") is None


def test_a_model_with_two_inputs_wants_names(infer: Infer) -> None:
    with pytest.raises(ValueError, match="x, y"):
        infer("two", ROWS)


def test_errors_never_quote_what_was_sent(infer: Infer, gateway: GatewayDouble) -> None:
    gateway.lie = _other_answer
    with pytest.raises(WrongReceiptError) as caught:
        infer("m", ROWS, patient="canary-mrn-99")
    assert "canary" not in repr(caught.value)
    with pytest.raises(ValueError, match="printable") as refused:
        infer("m", {"x": ROWS}, patient="canary\n99")
    assert "canary" not in repr(refused.value)
