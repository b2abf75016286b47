"""The client library on a real suite: sessions, arrays, refusals, forks that are none, renewal."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import services
from sealward.client import (
    AsyncClient,
    Client,
    DeniedError,
    InvalidRequestError,
    NotLoggedInError,
)
from sealward.client.profile import Profile
from tests.support.suites import RunningSuite, heldout

MODEL = "breast-cancer"


@pytest.fixture
def folder(suite: RunningSuite) -> Path:
    return suite.suite.clients / suite.user("grace")


def bare(rows: list[list[float]]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    path = Path(services.__path__[0], "inference", "shipped", MODEL, "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {session.get_inputs()[0].name: np.array(rows, np.float32)}
    return dict(zip(names, session.run(names, feed), strict=True))


def test_an_array_is_enough(folder: Path) -> None:
    rows = heldout(MODEL)[:5]
    with Client.from_profile(folder) as client:
        assert client.ready()
        result = client.infer(MODEL, rows, patient="mrn-client-1")
        for name, value in bare(rows).items():
            np.testing.assert_array_equal(result.outputs[name], value)
        assert client.model(MODEL).properties["sealward.model.digest"] == result.model_digest
        assert result.log_index < result.checkpoint.size
    assert (folder / "checkpoint").exists()


def test_calls_in_flight_together_are_all_proven(folder: Path) -> None:
    rows = heldout(MODEL)
    inputs = [{"measurements": np.array(rows[at : at + 1], np.float32)} for at in range(24)]
    with Client.from_profile(folder) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda value: client.infer(MODEL, value), inputs))
    assert len({result.event_id for result in results}) == 24
    expected = bare(rows[:24])["malignant_probability"]
    given = np.concatenate([result.outputs["malignant_probability"] for result in results])
    np.testing.assert_array_equal(given, expected)


def test_the_asynchronous_client_does_the_same(folder: Path) -> None:
    rows = heldout(MODEL)[:8]

    async def run() -> None:
        async with AsyncClient.from_profile(folder, consistency_interval=3600) as client:
            results = await asyncio.gather(*(client.infer(MODEL, [row]) for row in rows))
            given = np.concatenate([r.outputs["malignant_probability"] for r in results])
            np.testing.assert_array_equal(given, bare(rows)["malignant_probability"])
            with pytest.raises(InvalidRequestError) as caught:
                await client.infer("no-such-model", {"x": np.zeros((1, 1), np.float32)})
            assert (caught.value.reason, caught.value.outcome) == ("MODEL_UNKNOWN", "failed")

    asyncio.run(run())


def test_a_refusal_comes_with_its_receipt(suite: RunningSuite, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        with pytest.raises(InvalidRequestError) as wrong:
            client.infer(MODEL, {"measurements": np.zeros((1, 5), np.float32)})
        assert wrong.value.reason == "INPUT_SHAPE"
        assert wrong.value.receipt
    other = suite.suite.clients / suite.user("olga", "operator")
    with Client.from_profile(other) as client:
        with pytest.raises(DeniedError) as denied:
            client.infer(MODEL, {"measurements": np.zeros((1, 30), np.float32)}, purpose="TREAT")
        assert (denied.value.reason, denied.value.outcome) == ("POLICY_DENIED", "denied")
        assert suite.event(denied.value.event_id)["log_index"] == denied.value.log_index


def test_login_and_logout(suite: RunningSuite) -> None:
    name = suite.user("lin")
    with Client.from_profile(suite.suite.clients / name) as client:
        with pytest.raises(DeniedError) as refused:
            client.login("not the password")
        assert refused.value.reason == "LOGIN_FAILED"
        assert client.login(suite.password(name)).session_id
        client.infer(MODEL, heldout(MODEL)[:1])
        client.logout()
        with pytest.raises(NotLoggedInError):
            client.infer(MODEL, heldout(MODEL)[:1])


def test_a_certificate_is_renewed_with_its_key_and_the_session_lives(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "profile"
    shutil.copytree(folder, copy)
    before = Profile.load(copy).material()
    with Client.from_profile(copy) as client:
        client.infer(MODEL, heldout(MODEL)[:1])
        client._renewal._now = lambda: before.half_life
        assert client._renewer.renew()
        client.infer(MODEL, heldout(MODEL)[:1])
    after = Profile.load(copy).material()
    assert after.key_pem == before.key_pem
    assert after.chain_pem != before.chain_pem
    assert after.not_after >= before.not_after
