"""The manifest: strict, and silent about values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.inference.manifest import Manifest, ManifestError, parse_manifest
from services.inference.package import Package
from tests.support.inference_models import make_manifest, manifest_dict

X = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
Y = {"name": "y", "datatype": "FP32", "shape": [-1, 1]}


def test_shipped_manifests_say_what_they_must(shipped: dict[str, Package]) -> None:
    assert set(shipped) == {"breast-cancer", "diabetes-progression"}
    for name, package in shipped.items():
        manifest = package.manifest
        assert manifest.name == name
        assert manifest.deterministic == "strict"
        assert manifest.regulatory.status == "not-a-medical-device"
        assert "not a medical device" in package.card.lower()
        assert all(f.unit and f.maximum is not None for f in manifest.inputs[0].fields)
        assert not manifest.inputs[0].allow_nan
    assert shipped["diabetes-progression"].manifest.protected_inputs == ("age", "sex")
    outputs = shipped["breast-cancer"].manifest.outputs
    assert [(o.name, o.datatype, o.shape) for o in outputs] == [
        ("malignant_probability", "FP32", (-1, 1)),
        ("label", "INT64", (-1, 1)),
    ]


def test_canonical_json_is_one_form() -> None:
    manifest = make_manifest([X], [Y])
    again = parse_manifest(manifest.canonical_json().encode())
    assert again == manifest
    shuffled = dict(reversed(list(json.loads(manifest.canonical_json()).items())))
    assert parse_manifest(json.dumps(shuffled, indent=3).encode()).canonical_json() == (
        manifest.canonical_json()
    )


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"extra": 1}, "extra"),
        ({"name": "Upper"}, "name"),
        ({"name": "../up"}, "name"),
        ({"version": "01"}, "version"),
        ({"version": 1}, "version"),
        ({"digest": "AB" * 32}, "digest"),
        ({"schema": 2}, "schema"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [X, X]}, "same name"),
        ({"inputs": [{**X, "datatype": "FP8"}]}, "datatype"),
        ({"inputs": [{**X, "shape": [-1, 0]}]}, "dimension is 0"),
        ({"inputs": [{**X, "shape": [-2, 1]}]}, "shape"),
        ({"inputs": [{**X, "allow_nan": 1}]}, "allow_nan"),
        ({"inputs": [{**X, "fields": [{"name": "a", "unit": "1"}]}]}, "number of fields"),
        ({"deterministic": "fast"}, "deterministic"),
        ({"max_rows": 0}, "max_rows"),
        ({"default_timeout_ms": 0}, "default_timeout_ms"),
        ({"protected_inputs": ["age"]}, "protected_inputs"),
        ({"changelog": []}, "changelog"),
        ({"deterministic": "tolerance", "outputs": [{**Y, "shape": [1]}]}, "joining rows"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], names: str) -> None:
    raw = json.dumps({**manifest_dict([X], [Y]), **change}).encode()
    with pytest.raises(ManifestError, match=names):
        parse_manifest(raw)


@pytest.mark.parametrize("missing", sorted(manifest_dict([X], [Y])))
def test_every_key_is_required(missing: str) -> None:
    content = manifest_dict([X], [Y])
    del content[missing]
    with pytest.raises(ManifestError, match=missing):
        parse_manifest(json.dumps(content).encode())


def test_fields_are_checked_against_each_other() -> None:
    twice = [{"name": "a", "unit": "1"}, {"name": "a", "unit": "1"}]
    with pytest.raises(ManifestError, match="two fields"):
        make_manifest([{**X, "fields": twice}], [Y])
    inverted = [{"name": "a", "unit": "1", "minimum": 2.0, "maximum": 1.0}, twice[0]]
    with pytest.raises(ManifestError, match="minimum is above"):
        make_manifest([{**X, "fields": inverted}], [Y])


def test_errors_hold_no_values() -> None:
    canary = "canary-7f3a"
    for change in ({"name": canary + "!"}, {"digest": canary}, {"inputs": canary}):
        raw = json.dumps({**manifest_dict([X], [Y]), **change}).encode()
        with pytest.raises(ManifestError) as error:
            parse_manifest(raw)
        assert canary not in str(error.value)
    with pytest.raises(ManifestError) as not_json:
        parse_manifest(canary.encode())
    assert canary not in str(not_json.value)


def test_shape_helpers() -> None:
    manifest: Manifest = make_manifest([{**X, "shape": [-1, 2, 3]}], [{**Y, "shape": [4]}])
    assert manifest.inputs[0].has_rows
    assert manifest.inputs[0].row_items == 6
    assert manifest.inputs[0].shape_for(5) == (5, 2, 3)
    assert not manifest.outputs[0].has_rows
    assert not manifest.joinable
