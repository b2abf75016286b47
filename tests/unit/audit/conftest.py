"""Fixtures: a log that a test may open as often as it wants."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.logging import get_logger
from tests.support.audit_suite import Ring, Suite, open_suite


@pytest.fixture
def ring() -> Ring:
    return Ring()


@pytest.fixture
def reopen(tmp_path: Path, ring: Ring) -> Iterator[Callable[..., Suite]]:
    """Open the log in the test's folder, as often as the test wants."""
    opened: list[Suite] = []

    def open_(**options: Any) -> Suite:
        for old in opened:
            old.close()
        opened.append(open_suite(tmp_path / "audit", ring, **options))
        return opened[-1]

    yield open_
    for old in opened:
        old.close()


@pytest.fixture
def suite(reopen: Callable[..., Suite]) -> Suite:
    return reopen()


@pytest.fixture
def logger() -> Any:
    return get_logger("test", io.StringIO())
