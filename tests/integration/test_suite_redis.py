"""A whole suite whose sessions are in a Redis server of production: `sealward up --redis`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import CertificateAuthority
from tests.support.redis_server import RedisServer
from tests.support.suites import RunningSuite


def test_a_suite_runs_on_redis_fails_closed_without_it_and_heals(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    server = RedisServer(tmp_path / "redis", authority).start()
    credentials = server.credentials(tmp_path / "credentials")
    suite = RunningSuite(tmp_path / "data")
    told = suite.sealward(
        *("up", "--detach", "--redis", f"rediss://u:secret@127.0.0.1:{server.port}"), code=2
    )
    assert "command line" in told["error"]["message"]
    assert "secret" not in str(told)
    (credentials / "password").write_text("a wrong one")
    flags = ("--redis", server.url, "--redis-credentials", str(credentials))
    try:
        told = suite.sealward("up", "--detach", *suite.provider_flags(), *flags, code=3)
        assert "does not know the user sealward-gateway" in told["error"]["message"]
        server.credentials(credentials)
        suite.up()  # the folder remembers where its sessions are
        assert "valkey" not in suite.suite.state()["processes"]
        assert suite.sealward("status")["remote_session_store"]["url"] == server.url
        ann = suite.user("redis-ann")
        suite.ask(ann)
        server.stop()
        error = suite.refusal(ann, timeout=10)
        assert error.details["reason"] == "SESSION_STORE_UNAVAILABLE"
        server.start()
        suite.answers_again(ann)
        assert suite.sealward("session", "revoke", "--all")["revoked"] == 1
        assert suite.refusal(ann).details["reason"] == "SESSION_INVALID"
    finally:
        suite.down()
        server.stop()
