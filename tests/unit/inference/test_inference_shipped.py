"""The shipped models: their files fit together, and the script still makes the same bytes."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.inference.package import Package
from services.inference.registry import Model
from services.inference.settings import SHIPPED

ROOT = SHIPPED.parents[2]


def held_out(name: str) -> tuple[list[str], np.ndarray]:
    with (SHIPPED / name / "heldout.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    return header, np.array([[float(v) for v in row[1:]] for row in rows])


def test_held_out_rows_have_the_manifests_columns_and_ranges(shipped: dict[str, Package]) -> None:
    for name, package in shipped.items():
        header, table = held_out(name)
        fields = package.manifest.inputs[0].fields
        assert header == ["case", *(field.name for field in fields), "truth"]
        for column, field in enumerate(fields):
            assert field.minimum is not None
            assert field.maximum is not None
            assert table[:, column].min() >= field.minimum
            assert table[:, column].max() <= field.maximum


def test_the_cards_figures_are_what_the_models_reach(
    opened: dict[str, Model], shipped: dict[str, Package]
) -> None:
    _, table = held_out("breast-cancer")
    rows = table[:, :-1].astype(np.float32)
    _, label = opened["breast-cancer"].engine.run((rows,), len(rows))
    accuracy = float((label[:, 0] == table[:, -1]).mean())
    assert accuracy > 0.95
    assert f"| accuracy | {accuracy:.3f} |" in shipped["breast-cancer"].card

    _, table = held_out("diabetes-progression")
    rows = table[:, :-1].astype(np.float32)
    (got,) = opened["diabetes-progression"].engine.run((rows,), len(rows))
    error = np.abs(got[:, 0] - table[:, -1]).mean()
    assert f"| mean absolute error | {error:.1f} |" in shipped["diabetes-progression"].card


def test_the_script_makes_the_committed_bytes() -> None:
    if importlib.util.find_spec("skl2onnx") is None:
        pytest.skip(
            "scikit-learn and skl2onnx are not here; run it with "
            "`uv run --only-group models python tools/build_models.py --check`"
        )
    script = Path(ROOT, "tools", "build_models.py")
    done = subprocess.run([sys.executable, str(script), "--check"], check=False, timeout=120)
    assert done.returncode == 0
