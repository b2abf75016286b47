"""Rebuild the shipped models from scikit-learn's public clinical data sets.

Run it in the environment of the `models` dependency group:

    uv sync --only-group models && python tools/build_models.py [--check]

Both data sets come inside scikit-learn, so nothing is downloaded. Splits and seeds are fixed: with
the locked versions a second run writes the same bytes. `--check` writes nothing and exits 1 when
the committed files differ from what a run would write.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import sklearn
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SHIPPED = Path(__file__).resolve().parent.parent / "services" / "inference" / "shipped"
SEED = 20260101
HELD_OUT = 0.25
VERSION = "1"
OPSET = {"": 18, "ai.onnx.ml": 3}
GOLDEN_CASES = 8

# The source names no unit for the image measurements.
_BREAST_UNITS = {"radius": "image length", "perimeter": "image length", "area": "image area"}

# Ranges are what a living adult can show, with room; they catch a wrong unit or a shifted column.
# scikit-learn's documentation names s1 to s6; the codes are kept as the field names' prefix.
_DIABETES_FIELDS: tuple[tuple[str, str, float, float, str], ...] = (
    ("age", "a", 0, 120, "age in years"),
    ("sex", "1", 1, 2, "1 or 2; the source does not say which is which"),
    ("bmi", "kg/m2", 8, 80, "body mass index"),
    ("bp", "mm[Hg]", 30, 200, "average blood pressure"),
    ("s1", "mg/dL", 40, 600, "tc: total serum cholesterol"),
    ("s2", "mg/dL", 5, 500, "ldl: low-density lipoproteins"),
    ("s3", "mg/dL", 5, 200, "hdl: high-density lipoproteins"),
    ("s4", "1", 0.5, 20, "tch: total cholesterol / HDL"),
    ("s5", "ln(mg/dL)", 1, 9, "ltg: possibly log of serum triglycerides level"),
    ("s6", "mg/dL", 20, 600, "glu: blood sugar level"),
)


@dataclass(frozen=True)
class Data:
    """A data set after the split; rows are float64 as the source has them."""

    names: tuple[str, ...]
    x_train: np.ndarray
    x_held: np.ndarray
    y_train: np.ndarray
    y_held: np.ndarray
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """What one model's folder holds: file name -> bytes."""

    name: str
    files: Mapping[str, bytes]


def split(
    names: Sequence[str], x: np.ndarray, y: np.ndarray, *, prefix: str, stratify: bool
) -> Data:
    """Split a data set once and for all; a case is named by its row in the source."""
    rows = np.arange(len(x))
    train, held = train_test_split(
        rows, test_size=HELD_OUT, random_state=SEED, stratify=y if stratify else None
    )
    held = np.sort(held)
    return Data(
        tuple(names),
        x[train],
        x[held],
        y[train],
        y[held],
        tuple(f"{prefix}-{row:03d}" for row in held),
    )


def export(pipeline: Any, input_name: str, width: int, name: str) -> onnx.ModelProto:
    """Convert a fitted pipeline to ONNX with one float32 input of shape [-1, width]."""
    options = {}
    if hasattr(pipeline, "predict_proba"):
        options = {id(pipeline): {"zipmap": False}}
    model: onnx.ModelProto = to_onnx(
        pipeline,
        initial_types=[(input_name, FloatTensorType([None, width]))],
        options=options,
        target_opset=OPSET,
        name=name,
    )
    del model.metadata_props[:]
    model.doc_string = ""
    # The converter keeps both of these in sets, whose order differs from run to run.
    opsets = sorted((o.domain, o.version) for o in model.opset_import)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in opsets)
    for node in model.graph.node:
        attributes = sorted(node.attribute, key=lambda a: str(a.name))
        del node.attribute[:]
        node.attribute.extend(attributes)
    return model


def shape_outputs(
    model: onnx.ModelProto,
    outputs: Sequence[tuple[str, str, int, tuple[int, ...] | None]],
) -> None:
    """Replace the graph's outputs by [-1, 1] ones.

    Each entry is (source, name, ONNX element type, columns to gather); None for the columns means
    that the source is a vector to be made a column.
    """
    graph = model.graph
    del graph.output[:]
    for source, name, element, columns in outputs:
        constant = f"{name}_axis"
        graph.initializer.append(
            onnx.helper.make_tensor(
                constant,
                onnx.TensorProto.INT64,
                [2 if columns is None else len(columns)],
                (-1, 1) if columns is None else columns,
            )
        )
        if columns is None:
            node = onnx.helper.make_node("Reshape", [source, constant], [name], name=f"{name}_col")
        else:
            node = onnx.helper.make_node(
                "Gather", [source, constant], [name], name=f"{name}_pick", axis=1
            )
        graph.node.append(node)
        graph.output.append(onnx.helper.make_tensor_value_info(name, element, [None, 1]))
    onnx.checker.check_model(model, full_check=True)


def session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    """Open the exported model as the service does: CPU, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        onnx_bytes, sess_options=options, providers=["CPUExecutionProvider"]
    )


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Rename the tensor that one node makes, so that its name is free for an output."""
    for node in model.graph.node:
        if old in node.output:
            node.output[list(node.output).index(old)] = new


def run_singly(
    run: onnxruntime.InferenceSession, input_name: str, rows: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Run each row alone and return its outputs by name."""
    names = [output.name for output in run.get_outputs()]
    return [
        dict(zip(names, run.run(names, {input_name: row[None, :]}), strict=True)) for row in rows
    ]


def golden(
    run: onnxruntime.InferenceSession,
    input_name: str,
    datatypes: Mapping[str, str],
    rows: np.ndarray,
    cases: Sequence[str],
    picks: Sequence[int],
) -> bytes:
    """Write the self-test: inputs, and what the model must answer for them."""
    answers = run_singly(run, input_name, rows[list(picks)])
    document = {
        "absolute_tolerance": 1e-5,
        "relative_tolerance": 1e-5,
        "cases": [
            {
                "name": cases[pick],
                "inputs": [tensor(input_name, "FP32", rows[pick][None, :])],
                "outputs": [tensor(name, datatypes[name], value) for name, value in answer.items()],
            }
            for pick, answer in zip(picks, answers, strict=True)
        ],
    }
    return canonical(document)


def tensor(name: str, datatype: str, value: np.ndarray) -> dict[str, Any]:
    """Return a tensor in Open Inference Protocol JSON; float32 values keep their exact bits."""
    flat = value.ravel()
    data = [float(v) if datatype.startswith("FP") else int(v) for v in flat]
    return {"name": name, "datatype": datatype, "shape": list(value.shape), "data": data}


def canonical(document: object) -> bytes:
    """Encode JSON the same way each time, readable."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def held_out_csv(data: Data) -> bytes:
    """Write the held-out rows with their truth; the model has seen none of them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", *data.names, "truth"])
    for case, row, truth in zip(data.cases, data.x_held, data.y_held, strict=True):
        writer.writerow([case, *(repr(float(v)) for v in row), f"{truth:g}"])
    return out.getvalue().encode()


def ceiling(value: float) -> float:
    """Round up to two significant digits, so that a range reads as one."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.6g}")


def dump(folder_name: str, model: onnx.ModelProto, rest: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the ONNX bytes and the manifest that names their digest."""
    onnx_bytes: bytes = model.SerializeToString(deterministic=True)
    manifest = {
        "schema": 1,
        "name": folder_name,
        "version": VERSION,
        "digest": hashlib.sha256(onnx_bytes).hexdigest(),
        **rest,
    }
    return onnx_bytes, canonical(manifest)


def parity(answers: Sequence[Mapping[str, np.ndarray]], output: str, wanted: np.ndarray) -> float:
    """Return the largest difference between the ONNX model and scikit-learn."""
    got = np.array([answer[output][0, 0] for answer in answers])
    return float(np.abs(got - wanted).max())


def breast_cancer() -> Built:
    """Wisconsin breast cancer: 30 measurements of cell nuclei -> probability of malignancy."""
    source = load_breast_cancer()
    names = [str(n) for n in source.feature_names]
    # In the source 0 is malignant. Here 1 is, so that label and probability say the same thing.
    data = split(names, source.data, 1 - source.target, prefix="wdbc", stratify=True)
    pipeline = make_pipeline(
        StandardScaler(), GradientBoostingClassifier(n_estimators=100, random_state=SEED)
    )
    pipeline.fit(data.x_train.astype(np.float32), data.y_train)

    model = export(pipeline, "measurements", len(names), "breast_cancer")
    rename(model, "label", "class")
    shape_outputs(
        model,
        [
            ("probabilities", "malignant_probability", onnx.TensorProto.FLOAT, (1,)),
            ("class", "label", onnx.TensorProto.INT64, None),
        ],
    )
    fields = [
        {
            "name": name,
            "unit": next((u for word, u in _BREAST_UNITS.items() if word in name), "1"),
            "minimum": 0.0,
            "maximum": ceiling(3 * float(source.data[:, column].max())),
        }
        for column, name in enumerate(names)
    ]
    onnx_bytes, manifest = dump(
        "breast-cancer",
        model,
        {
            "summary": "Probability that a breast mass is malignant, from 30 measurements of cell "
            "nuclei in a fine needle aspirate.",
            "inputs": [
                {
                    "name": "measurements",
                    "datatype": "FP32",
                    "shape": [-1, len(names)],
                    "allow_nan": False,
                    "fields": fields,
                }
            ],
            "outputs": [
                {
                    "name": "malignant_probability",
                    "datatype": "FP32",
                    "shape": [-1, 1],
                    "unit": "1",
                    "description": "Probability of malignancy, 0 to 1.",
                },
                {
                    "name": "label",
                    "datatype": "INT64",
                    "shape": [-1, 1],
                    "unit": "1",
                    "description": "1 = malignant, 0 = benign.",
                },
            ],
            "deterministic": "strict",
            "max_rows": 1024,
            "default_timeout_ms": 2000,
            "data": {
                "category": "medical-test-results",
                "origin": "pathology",
                "source": "Breast Cancer Wisconsin (Diagnostic), UCI Machine Learning Repository, "
                "doi:10.24432/C5DW2B",
                "licence": "CC-BY-4.0",
            },
            "regulatory": {
                "status": "not-a-medical-device",
                "jurisdiction": "none",
                "basis": "Demonstration on public data; not assessed for clinical use.",
            },
            "protected_inputs": [],
            "changelog": ["1: first version"],
        },
    )

    run = session(onnx_bytes)
    held = data.x_held.astype(np.float32)
    answers = run_singly(run, "measurements", held)
    score = np.array([a["malignant_probability"][0, 0] for a in answers], dtype=np.float64)
    label = np.array([a["label"][0, 0] for a in answers])
    tn, fp, fn, tp = confusion_matrix(data.y_held, label).ravel()
    worst = parity(answers, "malignant_probability", pipeline.predict_proba(held)[:, 1])
    if worst > 1e-4:
        raise SystemExit(f"breast-cancer: ONNX differs from scikit-learn by {worst:.2e}")

    # The self-test holds both classes and the two cases the model is least sure of.
    order = np.argsort(np.abs(score - 0.5), kind="stable")
    picks = [int(i) for i in order[:2]]
    for wanted in (1, 0):
        picks += [int(i) for i in np.flatnonzero(data.y_held == wanted) if int(i) not in picks][
            : (GOLDEN_CASES - 2) // 2
        ]
    datatypes = {"malignant_probability": "FP32", "label": "INT64"}
    card = f"""# breast-cancer, version {VERSION}

Gives the probability that a breast mass is malignant, from 30 measurements of cell nuclei in a
digitised image of a fine needle aspirate. `label` is 1 (malignant) where the probability is above
one half.

**Not a medical device.** It demonstrates safeguarded inference. It has not been assessed for
clinical use and must not be used to decide about a patient.

## Data
Breast Cancer Wisconsin (Diagnostic): W. Wolberg, O. Mangasarian, N. Street, W. Street, 1993, UCI
Machine Learning Repository, doi:10.24432/C5DW2B, licence CC BY 4.0, as it ships inside
scikit-learn. {len(source.data)} masses from one hospital, {int((source.target == 0).sum())} of
them malignant. In the source 0 stands for malignant; in this model 1 does.

## Split
{len(data.x_train)} rows for training, {len(data.x_held)} held out (`heldout.csv`), stratified by
class, seed {SEED}. Nothing was chosen with the held-out rows.

## Method
StandardScaler, then gradient boosting with 100 trees of depth 3 (scikit-learn's defaults),
exported to ONNX. Largest difference from scikit-learn on the held-out rows: below 1e-4 in the
probability.

## Result on the held-out rows
| measure | value |
|---|---|
| accuracy | {accuracy_score(data.y_held, label):.3f} |
| area under the ROC curve | {roc_auc_score(data.y_held, score):.3f} |
| sensitivity | {tp / (tp + fn):.3f} ({tp} of {tp + fn} malignant found) |
| specificity | {tn / (tn + fp):.3f} ({tn} of {tn + fp} benign found) |
| Brier score | {brier_score_loss(data.y_held, score):.3f} |

## Intended use
Trying out Sealward with real measurements and a known truth.

## Limits
- One hospital, one imaging method, about 1990; no external validation.
- {len(data.x_held)} held-out cases: each misjudged one moves the figures by almost a percent.
- The data name neither age, sex, ethnicity nor origin, so fairness cannot be examined.
- The probability was not calibrated.
- Ranges in the manifest run from 0 to about three times the largest value in the data: they catch
  a wrong unit or a shifted column, not an implausible patient.
"""
    return Built(
        "breast-cancer",
        {
            "model.onnx": onnx_bytes,
            "manifest.json": manifest,
            "card.md": card.encode(),
            "golden.json": golden(run, "measurements", datatypes, held, data.cases, sorted(picks)),
            "heldout.csv": held_out_csv(data),
        },
    )


def diabetes() -> Built:
    """Diabetes progression: 10 baseline measurements -> progression after one year."""
    source = load_diabetes(scaled=False)
    names = [field[0] for field in _DIABETES_FIELDS]
    if list(source.feature_names) != names:
        raise SystemExit("diabetes: the source's columns are not the expected ones")
    data = split(names, source.data, source.target, prefix="diab", stratify=False)
    pipeline = make_pipeline(StandardScaler(), Ridge(alpha=10.0))
    folds = cross_val_score(pipeline, data.x_train, data.y_train, cv=5, scoring="r2")
    pipeline.fit(data.x_train.astype(np.float32), data.y_train)

    model = export(pipeline, "measurements", len(names), "diabetes_progression")
    shape_outputs(
        model, [(model.graph.output[0].name, "progression", onnx.TensorProto.FLOAT, None)]
    )
    onnx_bytes, manifest = dump(
        "diabetes-progression",
        model,
        {
            "summary": "Quantitative measure of diabetes progression one year after baseline, from "
            "10 baseline measurements.",
            "inputs": [
                {
                    "name": "measurements",
                    "datatype": "FP32",
                    "shape": [-1, len(names)],
                    "allow_nan": False,
                    "fields": [
                        {
                            "name": name,
                            "unit": unit,
                            "minimum": float(low),
                            "maximum": float(high),
                            "description": text,
                        }
                        for name, unit, low, high, text in _DIABETES_FIELDS
                    ],
                }
            ],
            "outputs": [
                {
                    "name": "progression",
                    "datatype": "FP32",
                    "shape": [-1, 1],
                    "unit": "1",
                    "description": "Disease progression one year after baseline; 25 to 346 in the "
                    "source.",
                }
            ],
            "deterministic": "strict",
            "max_rows": 1024,
            "default_timeout_ms": 2000,
            "data": {
                "category": "medical-test-results",
                "origin": "laboratory",
                "source": "Efron, Hastie, Johnstone, Tibshirani: Least Angle Regression, Annals of "
                "Statistics 32 (2004), as it ships inside scikit-learn",
                "licence": "not stated by the source; distributed with scikit-learn",
            },
            "regulatory": {
                "status": "not-a-medical-device",
                "jurisdiction": "none",
                "basis": "Demonstration on public data; not assessed for clinical use.",
            },
            "protected_inputs": ["age", "sex"],
            "changelog": ["1: first version"],
        },
    )

    run = session(onnx_bytes)
    held = data.x_held.astype(np.float32)
    answers = run_singly(run, "measurements", held)
    got = np.array([a["progression"][0, 0] for a in answers], dtype=np.float64)
    worst = parity(answers, "progression", pipeline.predict(held).ravel())
    if worst > 1e-2:
        raise SystemExit(f"diabetes-progression: ONNX differs from scikit-learn by {worst:.2e}")
    baseline = np.full_like(data.y_held, data.y_train.mean())
    rmse = math.sqrt(mean_squared_error(data.y_held, got))
    rmse_mean = math.sqrt(mean_squared_error(data.y_held, baseline))
    # By rank of the answer, so that the self-test covers low, middle and high.
    ranks = np.argsort(got, kind="stable")
    steps = np.linspace(0, len(ranks) - 1, GOLDEN_CASES).astype(int)
    picks = sorted(int(ranks[i]) for i in steps)
    card = f"""# diabetes-progression, version {VERSION}

Estimates a quantitative measure of diabetes progression one year after baseline, from age, sex,
body mass index, average blood pressure and six blood serum measurements.

**Not a medical device.** It demonstrates safeguarded inference. It has not been assessed for
clinical use and must not be used to decide about a patient.

## Data
Efron, Hastie, Johnstone, Tibshirani: Least Angle Regression, Annals of Statistics 32 (2004), as it
ships inside scikit-learn (`load_diabetes(scaled=False)`). {len(source.data)} patients. The source
states no licence of its own; scikit-learn distributes the data.

## Split
{len(data.x_train)} rows for training, {len(data.x_held)} held out (`heldout.csv`), seed {SEED}.
Nothing was chosen with the held-out rows.

## Method
StandardScaler, then ridge regression (alpha 10), exported to ONNX. A linear model, because it did
as well as boosted trees in cross-validation and everybody can read it. Five-fold R² on the
training rows: {folds.mean():.2f}.

## Result on the held-out rows
| measure | value | always answering the mean |
|---|---|---|
| R² | {r2_score(data.y_held, got):.3f} | {r2_score(data.y_held, baseline):.3f} |
| mean absolute error | {mean_absolute_error(data.y_held, got):.1f} | {mean_absolute_error(data.y_held, baseline):.1f} |
| root mean squared error | {rmse:.1f} | {rmse_mean:.1f} |

The measure runs from 25 to 346 in the data.

## Intended use
Trying out Sealward with real measurements and a known truth.

## Limits
- About half of the variation is not explained: single answers are rough.
- The source says neither where nor when the patients were seen, and not which code of `sex` is
  which; no external validation.
- `age` and `sex` are protected attributes and are inputs; the manifest says so.
- Ranges in the manifest are what a living adult can show, with room: they catch a wrong unit or a
  shifted column, not an implausible patient.
"""  # noqa: E501 - a Markdown table row is one line
    return Built(
        "diabetes-progression",
        {
            "model.onnx": onnx_bytes,
            "manifest.json": manifest,
            "card.md": card.encode(),
            "golden.json": golden(
                run, "measurements", {"progression": "FP32"}, held, data.cases, picks
            ),
            "heldout.csv": held_out_csv(data),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folders, or compare with what is there; return 1 on a difference."""
    parser = argparse.ArgumentParser(description="Rebuild the shipped models.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(argv).check
    print(f"scikit-learn {sklearn.__version__}, onnxruntime {onnxruntime.__version__}")
    different = 0
    for built in (breast_cancer(), diabetes()):
        folder = SHIPPED / built.name
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in built.files.items():
            path = folder / name
            same = path.is_file() and path.read_bytes() == content
            if check:
                different += not same
            elif not same:
                path.write_bytes(content)
            state = "same" if same else "DIFFERENT" if check else "written"
            print(f"{built.name}/{name}: {len(content)} bytes, {state}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
