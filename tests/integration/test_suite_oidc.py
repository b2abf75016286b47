"""`sealward login --oidc` at a real identity provider, from the command line to a prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from tests.integration.test_gateway_oidc import CLIENT, PEOPLE, ROLES, new_keys
from tests.support.oidc_provider import IdentityProvider
from tests.support.suites import RunningSuite, rest_json, running


def login(suite: RunningSuite, idp: IdentityProvider, name: str, subject: str) -> tuple[int, str]:
    """Run the command, be its browser; return exit code and output."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "sealward.cli.main", "login", "--oidc", "--no-browser", "--user",
            name, "--dir", str(suite.suite.root), "--json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env=suite.environ,
    )  # fmt: skip
    assert process.stderr is not None
    assert "log in" in process.stderr.readline()
    url = process.stderr.readline().strip()
    back = idp.log_in(url, subject)
    # Somebody else's page sends the browser to the port too: it is not listened to.
    assert visit(back.split("?")[0] + "?code=evil&state=guessed") == 404
    assert visit(back) == 200
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out


def visit(address: str) -> int:
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_login_at_the_provider(tmp_path: Path) -> None:
    idp = IdentityProvider(tmp_path, PEOPLE, [CLIENT], new_keys())
    roles = tmp_path / "roles.json"
    roles.write_text(json.dumps(ROLES))
    settings = {
        "OIDC_ISSUER": idp.issuer, "OIDC_CLIENT_ID": "sealward", "OIDC_CA_FILE": str(idp.ca_file),
        "OIDC_ROLES_FILE": str(roles),
    }  # fmt: skip
    environ = {f"SEALWARD_GATEWAY_{name}": value for name, value in settings.items()}
    try:
        with running(tmp_path / "data", environ) as suite:
            ann = suite.user("ann")
            code, out = login(suite, idp, ann, "s-ann")
            assert (code, json.loads(out)["error"]["reason"]) == (1, "PERSON_UNKNOWN")
            assert suite.sealward("identity", "link", ann, "--subject", "s-ann")["user"] == ann
            code, out = login(suite, idp, ann, "s-ann")
            assert code == 0, out
            file = tmp_path / "in.json"
            file.write_text(rest_json())
            asking = ["infer", "breast-cancer", "--input", str(file), "--user", ann]
            assert suite.sealward(*asking)["outputs"]
            listed = suite.sealward("identity", "list")["identities"]
            assert [(row["user"], row["subject"]) for row in listed] == [(ann, "s-ann")]
            assert suite.sealward("identity", "unlink", ann)["revoked"] >= 1
            assert suite.sealward(*asking, code=1)["error"]["reason"] == "SESSION_INVALID"
            suite.sealward("identity", "link", ann, "--subject", "s-ann")
            # The provider goes away: that is said, and a password works.
            suite.login(ann)
            idp.stop()
            suite.restarted("gateway", suite.kill("gateway"))
            suite.answers_again(ann)
            error = suite.sealward("login", "--oidc", "--user", ann, "--no-browser", code=3)
            assert error["error"]["reason"] == "PROVIDER_UNAVAILABLE"
            suite.login(ann)
            assert suite.sealward(*asking)["outputs"]
            for log in (suite.suite.root / "logs").glob("*.log"):
                assert "code=" not in log.read_text()
    finally:
        idp.stop()


def test_half_a_setting_does_not_start(tmp_path: Path) -> None:
    environ = {"SEALWARD_GATEWAY_OIDC_ISSUER": "https://login.example"}
    own = RunningSuite(tmp_path / "data", environ)
    assert own.sealward_any("up", "--detach") != 0
    own.sealward_any("down")
    assert "oidc_ca_file" in (own.suite.root / "logs" / "gateway.log").read_text()
