"""Quotas in Redis as it is shipped: the gateway's user of the ACL may count, and is enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.tls import Credentials
from services.gateway.policy.limits import Limit
from services.gateway.quotas import Quotas
from services.gateway.sessions import make_pool
from services.gateway.storetls import Remote, StoreTls, connection_options
from tests.conftest import CertificateAuthority
from tests.support.redis_server import USER, RedisServer


def test_quotas_are_counted_in_redis_and_closed_without_it(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    server = RedisServer(tmp_path / "redis", authority).start()
    try:
        folder = server.credentials(tmp_path / "credentials")
        remote = Remote(
            "127.0.0.1", server.port, 0, USER, folder / "password", folder / "ca.pem",
            folder / "cert.pem", folder / "key.pem",
        )  # fmt: skip
        own = Credentials(authority.issue("spiffe://sealward.local/service/gateway"))
        tls = StoreTls(remote, own, structlog.get_logger())
        pool = make_pool("rediss://", remote=connection_options(remote, tls))
        quotas = Quotas(pool, lambda: 86_400_000.0)
        quota = Limit("r", "calls", 32, 86_400, False)
        for _ in range(3):
            assert quotas.take([quota], "u1", wait=True) is not None
        assert quotas.used(quota, "u1")[0] == 3
        server.stop()
        assert quotas.take([quota], "u1", wait=False) is not None
        with pytest.raises(SealwardError) as caught:
            quotas.take([quota], "u1", wait=True)
        assert caught.value.reason is Reason.SESSION_STORE_UNAVAILABLE
    finally:
        server.stop()
