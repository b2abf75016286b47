"""One suite in development mode for what foreign clients are tried on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.suites import RunningSuite, running


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    environ = {"SEALWARD_GATEWAY_DEVELOPMENT": "true"}
    with running(tmp_path_factory.mktemp("suite") / "data", environ) as started:
        yield started
