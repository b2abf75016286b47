"""What inference answers besides predictions."""

from __future__ import annotations

import pytest

from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference.package import Package, PackageError
from services.inference.questions import MODEL_METADATA, MODEL_READY, answer
from services.inference.registry import Registry
from services.inference.runtime import RuntimeSpec


@pytest.fixture(scope="module")
def registry(shipped: dict[str, Package]) -> Registry:
    def broken() -> Package:
        raise PackageError("the package is damaged")

    made = Registry(RuntimeSpec(), "r")
    made.open("breast-cancer", "1", lambda: shipped["breast-cancer"])
    made.open("broken", "1", broken)
    return made


def ready(registry: Registry, name: str, version: str = "") -> bool:
    body = oip.ModelReadyRequest(name=name, version=version).SerializeToString()
    return oip.ModelReadyResponse.FromString(answer(registry, MODEL_READY, body)).ready


def test_ready_tells_states_apart(registry: Registry) -> None:
    assert ready(registry, "breast-cancer")
    assert ready(registry, "breast-cancer", "1")
    assert not ready(registry, "broken")
    for name, version in (("no-such-model", ""), ("breast-cancer", "2")):
        with pytest.raises(SealwardError) as caught:
            ready(registry, name, version)
        assert caught.value.reason is Reason.MODEL_UNKNOWN


def test_metadata_is_the_manifests(registry: Registry, shipped: dict[str, Package]) -> None:
    manifest = shipped["breast-cancer"].manifest
    body = oip.ModelMetadataRequest(name="breast-cancer").SerializeToString()
    said = oip.ModelMetadataResponse.FromString(answer(registry, MODEL_METADATA, body))
    assert (said.name, list(said.versions)) == ("breast-cancer", ["1"])
    assert [(t.name, t.datatype, tuple(t.shape)) for t in said.inputs] == [
        (spec.name, spec.datatype, spec.shape) for spec in manifest.inputs
    ]
    assert [t.name for t in said.outputs] == [spec.name for spec in manifest.outputs]
    assert said.properties["sealward.model.digest"] == manifest.digest


def test_a_model_that_failed_declares_nothing(registry: Registry) -> None:
    body = oip.ModelMetadataRequest(name="broken").SerializeToString()
    with pytest.raises(SealwardError) as caught:
        answer(registry, MODEL_METADATA, body)
    assert caught.value.reason is Reason.MODEL_NOT_READY


def test_other_methods_are_not_served(registry: Registry) -> None:
    with pytest.raises(SealwardError) as caught:
        answer(registry, "/inference.GRPCInferenceService/ServerLive", b"")
    assert caught.value.reason is Reason.METHOD_UNKNOWN
