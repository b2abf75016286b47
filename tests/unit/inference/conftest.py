"""The shipped models, opened once."""

from __future__ import annotations

import io

import pytest
import structlog
from prometheus_client import CollectorRegistry

from sealward.kit.logging import get_logger
from services.inference.metrics import ModelMetrics
from services.inference.package import Package, read_folder, read_package
from services.inference.registry import Model
from services.inference.settings import SHIPPED
from tests.support.inference_models import opened_model

Log = tuple[structlog.typing.FilteringBoundLogger, io.StringIO]


@pytest.fixture(scope="session")
def shipped() -> dict[str, Package]:
    folders = sorted(path for path in SHIPPED.iterdir() if path.is_dir())
    return {folder.name: read_package(read_folder(folder)) for folder in folders}


@pytest.fixture(scope="session")
def opened(shipped: dict[str, Package]) -> dict[str, Model]:
    return {name: opened_model(package) for name, package in shipped.items()}


@pytest.fixture
def log() -> Log:
    stream = io.StringIO()
    return get_logger("inference", stream), stream


@pytest.fixture
def metrics() -> ModelMetrics:
    return ModelMetrics(CollectorRegistry())
