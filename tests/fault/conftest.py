"""A suite to break: one for each module, started by the real command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.suites import RunningSuite, running


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("fault") / "data") as started:
        yield started
