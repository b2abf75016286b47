"""grpcurl, with the client certificate: reflection in development mode, and nothing without one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.go_programs import GRPCURL, go_program
from tests.support.suites import RunningSuite

# The first run fetches and builds.
pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    return go_program(GRPCURL)


def run(
    grpcurl: Path, suite: RunningSuite, *arguments: str, certificate: bool = True
) -> subprocess.CompletedProcess[str]:
    profile = suite.suite.clients / suite.user("ada")
    command = [str(grpcurl), "-cacert", str(profile / "ca.pem"), "-max-time", "20"]
    if certificate:
        command += ["-cert", str(profile / "cert.pem"), "-key", str(profile / "key.pem")]
    before, after = list(arguments), []
    if arguments and not arguments[-1].startswith("-"):
        before, after = list(arguments[:-1]), [arguments[-1]]
    return subprocess.run(
        [*command, *before, suite.suite.address("gateway"), *after],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_grpcurl_lists_the_services(grpcurl: Path, suite: RunningSuite) -> None:
    done = run(grpcurl, suite, "list")
    assert done.returncode == 0, done.stderr
    assert {
        "inference.GRPCInferenceService",
        "sealward.api.gateway.v1.SessionService",
        "grpc.health.v1.Health",
    } <= set(done.stdout.split())


def test_grpcurl_calls_with_the_certificate_alone_or_a_token(
    grpcurl: Path, suite: RunningSuite
) -> None:
    ready = run(grpcurl, suite, "inference.GRPCInferenceService/ServerReady")
    assert ready.returncode == 0, ready.stderr
    assert '"ready": true' in ready.stdout
    token = f"authorization: Bearer {suite.token(suite.user('ada'))}"
    body = '{"name": "breast-cancer"}'
    method = "inference.GRPCInferenceService/ModelReady"
    asked = run(grpcurl, suite, "-H", token, "-d", body, method)
    assert asked.returncode == 0, asked.stderr
    assert '"ready": true' in asked.stdout
    denied = run(grpcurl, suite, "-d", body, method)
    assert denied.returncode != 0
    # The reason is read through reflection too: google.rpc.ErrorInfo.
    assert "SESSION_MISSING" in denied.stderr


def test_grpcurl_gets_nowhere_without_a_certificate(grpcurl: Path, suite: RunningSuite) -> None:
    done = run(grpcurl, suite, "list", certificate=False)
    assert done.returncode != 0
    assert not done.stdout
