"""grpcurl, with the client certificate: reflection in development mode, and nothing without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.suites import RunningSuite

# The first run fetches and builds.
pytestmark = pytest.mark.timeout(420)

MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The program, built once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    folder = cache / "grpcurl-v1.9.4"
    program = folder / "grpcurl"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: grpcurl has not been run (https://go.dev/dl)")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [go, "install", MODULE],
        env={**os.environ, "GOBIN": str(folder)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if done.returncode:
        pytest.skip("grpcurl cannot be built: it has not been run (no Go module proxy?)")
    return program


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
