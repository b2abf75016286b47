"""The stock tritonclient, in an environment of its own, against a real suite."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import services
from tests.support import triton_env
from tests.support.suites import RunningSuite, heldout
from tests.support.tlog_logs import signer

# The first run fetches and builds.
pytestmark = pytest.mark.timeout(420)

PROGRAM = Path(__file__).parent / "triton" / "program.py"
MODELS = ("breast-cancer", "diabetes-progression")


@pytest.fixture(scope="session")
def interpreter() -> Path:
    return triton_env.python()


def shipped(model: str) -> onnxruntime.InferenceSession:
    path = Path(services.__path__[0], "inference", "shipped", model, "model.onnx")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(interpreter: Path, mode: str, profile: Path, model: str, rows: Any) -> dict[str, Any]:
    name = shipped(model).get_inputs()[0].name
    done = subprocess.run(
        [interpreter, PROGRAM, mode, profile, model, name],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=profile,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    # What is tested is the installed wheel, beside tritonclient's own stubs and protobuf 6.
    assert answer["own_stubs"] == []
    assert answer["protobuf"].split(".")[0] in {"6", "5"}
    assert "site-packages" in answer["sealward"]
    return answer


def assert_same_numbers(answer: dict[str, Any], model: str, rows: Any) -> None:
    session = shipped(model)
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: np.array(rows, np.float32)})
    assert set(answer["outputs"]) == set(names)
    for name, value in zip(names, values, strict=True):
        given = np.array(answer["outputs"][name], value.dtype)
        np.testing.assert_array_equal(given, value)


@pytest.mark.parametrize("model", MODELS)
def test_the_token_is_all_that_a_stock_client_needs(
    interpreter: Path, suite: RunningSuite, model: str
) -> None:
    profile = suite.suite.clients / suite.user("ada")
    rows = heldout(model)[:3]
    answer = run(interpreter, "plain", profile, model, rows)
    assert_same_numbers(answer, model, rows)
    assert (answer["live"], answer["ready"], answer["model_ready"]) == (True, True, True)
    assert answer["declared"] == [shipped(model).get_inputs()[0].name]
    assert answer["server"]["name"]
    assert answer["without_token"] == "StatusCode.UNAUTHENTICATED"


def test_an_attached_client_verifies_every_answer(interpreter: Path, suite: RunningSuite) -> None:
    profile = suite.suite.clients / suite.user("ada")
    rows = heldout(MODELS[0])[:2]
    answer = run(interpreter, "attached", profile, MODELS[0], rows)
    assert_same_numbers(answer, MODELS[0], rows)
    assert answer["all_alike"]
    assert len(set(answer["events"])) == 11
    assert len(set(answer["indexes"])) == 11
    assert answer["model_ready"]
    assert answer["unknown_model"] == "StatusCode.NOT_FOUND"
    assert (profile / "checkpoint").stat().st_mode & 0o777 == 0o600
    manifest = Path(services.__path__[0], "inference", "shipped", MODELS[0], "manifest.json")
    assert answer["digests"] == [json.loads(manifest.read_text())["digest"]]
    shown = suite.event(answer["events"][0])["span"]["attributes"]
    assert shown["sealward.actor.id"] == "ada"
    assert int(shown["sealward.caller.seq"]) >= 1


def test_an_attached_client_refuses_a_log_of_another_key(
    interpreter: Path, suite: RunningSuite, tmp_path: Path
) -> None:
    profile = tmp_path / "profile"
    shutil.copytree(suite.suite.clients / suite.user("ada"), profile)
    (profile / "checkpoint").unlink(missing_ok=True)
    name = (profile / "log.vkey").read_text().partition("+")[0]
    (profile / "log.vkey").write_text(signer(name=name).vkey + "\n")
    rows = heldout(MODELS[0])[:1]
    answer = run(interpreter, "foreign-key", profile, MODELS[0], rows)
    assert answer["raised"] == "WrongReceiptError"
    assert answer["called_back"] == "StatusCode.DATA_LOSS"
