"""The suite that the whole-suite tests share: started once, by the real command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.suites import RunningSuite, running


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("suite") / "data") as started:
        yield started
