"""The one path of a request: from `up` to a receipt that verifies offline."""

from __future__ import annotations

import base64
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import services
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.cli.errors import CliError
from sealward.cli.oip_json import response_to_json
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import verify_receipt
from tests.support.suites import RunningSuite, heldout, request, rest_json, until


def test_infer_prints_an_answer_and_its_place_in_the_log(
    suite: RunningSuite, tmp_path: Path
) -> None:
    ada = suite.user("ada")
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    found = suite.sealward(
        "infer", "breast-cancer", "--input", str(file), "--user", ada,
        "--receipt", str(tmp_path / "receipt"),
    )  # fmt: skip
    assert found["model_name"] == "breast-cancer"
    names = {output["name"] for output in found["outputs"]}
    assert names == {"malignant_probability", "label"}
    receipt = base64.b64decode(found["receipt"])
    assert (tmp_path / "receipt").read_bytes() == receipt

    listed = suite.sealward("audit", "query", "--user", ada, "--outcome", "ok")["events"]
    row = next(e for e in listed if e["event_id"] == found["event_id"])
    assert row["log_index"] == found["log_index"]
    assert row["model"] == "breast-cancer"
    assert row["purpose"] == "TREAT"

    shown = suite.event(found["event_id"])["span"]["attributes"]
    assert shown["sealward.event.type"] == "inference.predict"
    assert shown["sealward.actor.id"] == ada

    verified = suite.sealward("audit", "verify", "--receipt", str(tmp_path / "receipt"))
    assert verified["event_id"] == found["event_id"]
    proven = suite.sealward("audit", "prove", found["event_id"])
    assert proven["log_index"] == found["log_index"]


@pytest.mark.parametrize("model", ["breast-cancer", "diabetes-progression"])
def test_the_numbers_are_the_models_own(suite: RunningSuite, model: str) -> None:
    ada = suite.user("ada")
    path = Path(services.__path__[0], "inference", "shipped", model, "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = np.array(heldout(model)[:4], np.float32)
    expected = dict(
        zip(
            [output.name for output in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: values}),
            strict=True,
        )
    )
    answer = suite.ask(ada, request(model, rows=4))
    shown = response_to_json(ModelInferResponse.FromString(answer.response))
    for output in shown["outputs"]:
        given = np.array(output["data"]).reshape(output["shape"])
        wanted = np.asarray(expected[output["name"]]).reshape(output["shape"])
        np.testing.assert_array_equal(given, wanted)


def test_a_receipt_is_about_one_call_alone(suite: RunningSuite) -> None:
    answer = suite.ask(suite.user("ada"))
    vkeys = parse_vkeys(suite.suite.vkey_file.read_text())
    right = {
        "request_digest": sha256(answer.request).digest(),
        "response_digest": sha256(answer.response).digest(),
        "model_digest": bytes.fromhex(answer.proof.model_digest),
    }
    receipt = answer.proof.receipt
    verify_receipt(receipt, vkeys=vkeys, outcome=Outcome.OK, **right)
    for part in right:
        with pytest.raises(Exception, match="another"):
            verify_receipt(receipt, vkeys=vkeys, outcome=Outcome.OK, **{**right, part: bytes(32)})


def test_the_log_verifies_offline(suite: RunningSuite) -> None:
    answer = suite.ask(suite.user("ada"))
    until(lambda: suite.published() > answer.proof.log_index, "published")
    log, vkey = suite.suite.log_dir, suite.suite.vkey_file
    found = suite.sealward("audit", "verify", "--log", str(log), "--vkey", str(vkey))
    assert found["verified"] is True
    assert found["size"] > answer.proof.log_index


def test_a_changed_log_names_the_entry(suite: RunningSuite, tmp_path: Path) -> None:
    import shutil

    from sealward.cli.demo_steps import _copy_log, _flip

    answer = suite.ask(suite.user("ada"))
    until(lambda: suite.published() > answer.proof.log_index, "published")
    copy = tmp_path / "log"
    _copy_log(suite.suite.log_dir, copy)
    size = int((copy / "checkpoint").read_bytes().split(b"\n")[1])
    _flip(copy, answer.proof.log_index, size)
    vkey = str(suite.suite.vkey_file)
    found = suite.sealward("audit", "verify", "--log", str(copy), "--vkey", vkey, code=1)
    assert found["error"]["entry"] == answer.proof.log_index
    shutil.rmtree(copy)


def test_a_second_up_says_so(suite: RunningSuite) -> None:
    before = suite.pid("gateway")
    assert suite.up() == suite.suite.endpoints()
    assert suite.pid("gateway") == before


def test_status_and_health(suite: RunningSuite) -> None:
    found = suite.sealward("status")
    assert found["ready"] is True
    assert {s["health"] for s in found["services"].values()} == {"ready"}
    assert found["keys"]["provider"] == suite.provider
    assert found["keys"]["single_host"] is True
    assert suite.sealward("healthcheck", "audit") == {"service": "audit", "ready": True}
    assert suite.sealward("keys", "status")["state"] == "ready"


def test_every_file_is_closed_to_others(suite: RunningSuite) -> None:
    suite.ask(suite.user("ada"))
    for folder, names, files in os.walk(suite.suite.root):
        for name in (*names, *files):
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            assert mode & 0o077 == 0, path


def test_a_client_folder_has_what_a_client_needs(suite: RunningSuite) -> None:
    suite.ask(suite.user("ada"))
    folder = suite.suite.clients / "ada"
    names = {path.name for path in folder.iterdir()}
    assert {
        "ca.pem", "cert.pem", "key.pem", "log.vkey", "profile.json", "session", "checkpoint",
    } <= names  # fmt: skip
    profile = json.loads((folder / "profile.json").read_bytes())
    assert profile["gateway"] == suite.suite.address("gateway")


def test_processes_are_recognised_by_their_command_line(suite: RunningSuite) -> None:
    for name in ("gateway", "inference", "audit", "keys"):
        command = Path(f"/proc/{suite.pid(name)}/cmdline").read_bytes()
        assert f"services.{name}".encode() in command


def test_login_and_logout(suite: RunningSuite, tmp_path: Path) -> None:
    name = suite.user("grace")
    file = tmp_path / "password"
    file.write_text(suite.password(name))
    found = suite.sealward("login", "--user", name, "--password-file", str(file))
    assert set(found) == {"token", "expires"}
    assert suite.token(name) == found["token"]
    suite.ask(name)
    assert suite.sealward("logout", "--user", name) == {"ended": True}
    assert suite.refusal(name).details["reason"] == "SESSION_MISSING"
    assert suite.sealward("logout", "--user", name) == {"ended": False}


def test_a_wrong_password_is_refused(suite: RunningSuite, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("not the right one")
    found = suite.sealward(
        "login", "--user", suite.user("ada"), "--password-file", str(file), code=1
    )
    assert found["error"]["reason"] == "LOGIN_FAILED"


def test_revoked_sessions_end_at_once(suite: RunningSuite) -> None:
    name = suite.user("edsger")
    suite.ask(name)
    sessions = suite.sealward("session", "list", "--user", name)["sessions"]
    assert [s["user"] for s in sessions] == [name]
    assert suite.sealward("session", "revoke", sessions[0]["session_id"]) == {"revoked": 1}

    def refused() -> bool:
        try:
            suite.ask(name)
        except CliError as error:
            reasons.append(error.details["reason"])
        return bool(reasons)

    reasons: list[str] = []
    until(refused, "the session ends", seconds=10.0)
    assert reasons == ["SESSION_INVALID"]


def test_a_disabled_user_is_out(suite: RunningSuite, tmp_path: Path) -> None:
    name = suite.user("mallory")
    suite.ask(name)
    done = suite.sealward("user", "disable", name)
    assert (done["revoked"], done["certificates_pending"]) == (1, False)
    assert done["certificates"] >= 1
    users = {u["user"]: u for u in suite.sealward("user", "list")["users"]}
    assert users[name]["disabled"] is True
    file = tmp_path / "password"
    file.write_text(suite.password(name))
    found = suite.sealward("login", "--user", name, "--password-file", str(file), code=1)
    # The certificate is gone as well, within a second.
    assert found["error"]["reason"] in ("LOGIN_FAILED", "CERTIFICATE_REVOKED")


def test_the_first_administrators_password_is_for_one_use(
    suite: RunningSuite, tmp_path: Path
) -> None:
    file = suite.suite.admin_password_file
    once = tmp_path / "once"
    once.write_bytes(file.read_bytes())
    arguments = ("login", "--user", "admin", "--password-file", str(once))
    found = suite.sealward(*arguments, code=1)
    assert found["error"]["reason"] == "PASSWORD_CHANGE_REQUIRED"
    new = tmp_path / "new"
    new.write_text("a much longer one of my own")
    suite.sealward(*arguments, "--new-password-file", str(new))
    assert not file.exists()
    assert suite.sealward(*arguments, code=1)["error"]["reason"] == "LOGIN_FAILED"


def test_configuration_is_checked_as_the_services_would(suite: RunningSuite) -> None:
    assert suite.sealward("config", "check") == {"ok": True}
    suite.environ["SEALWARD_GATEWAY_IDEL_SECONDS"] = "5"
    try:
        found = suite.sealward("config", "check", code=1)
    finally:
        del suite.environ["SEALWARD_GATEWAY_IDEL_SECONDS"]
    assert "SEALWARD_GATEWAY_IDEL_SECONDS" in found["error"]["wrong"]["gateway"]


def test_certificates_are_shown(suite: RunningSuite) -> None:
    suite.user("ada")
    rows = {row["holder"]: row for row in suite.sealward("certs", "show")["certificates"]}
    assert rows["service keys"]["identity"].endswith("/service/keys")
    assert rows["administrator"]["identity"].endswith("/admin/local")
    assert rows["user ada"]["state"] == "ok"


def test_certificates_are_renewed_when_they_are_due(suite: RunningSuite) -> None:
    name = suite.user("ada")
    folder = suite.suite.clients / name
    # Whatever is wrong with a certificate, an expired one included, a new one is due.
    (folder / "cert.pem").write_bytes((suite.suite.clients / "admin" / "cert.pem").read_bytes())
    suite.suite.renewal_file.write_text("0")
    until(lambda: float(suite.suite.renewal_file.read_text() or 0) > 0, "a renewal has run")
    suite.ask(name)


def test_a_renewed_certificate_keeps_the_session(suite: RunningSuite) -> None:
    name = suite.user("ada")
    folder = suite.suite.clients / name
    before, key = (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()
    assert suite.sealward("certs", "rotate", "--user", name) == {"renewed": [name]}
    assert (folder / "cert.pem").read_bytes() != before
    assert (folder / "key.pem").read_bytes() == key
    suite.ask(name)
