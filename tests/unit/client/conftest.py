"""A gateway double and a profile for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_double import GatewayDouble


@pytest.fixture
def gateway(authority: Any) -> Iterator[GatewayDouble]:
    double = GatewayDouble(authority)
    yield double
    double.stop()


@pytest.fixture
def folder(gateway: GatewayDouble, tmp_path: Path) -> Path:
    return gateway.profile(tmp_path / "alice")
