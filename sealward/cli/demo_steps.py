"""The steps of the demonstration: each does one thing and returns what it saw."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.cli.errors import CliError
from sealward.cli.infer import Answer, Caller
from sealward.cli.suite import Suite
from sealward.tlog.errors import ReceiptError
from sealward.tlog.leaf import Outcome
from sealward.tlog.logdir import LogVerificationError, verify_directory
from sealward.tlog.note import Verifier, parse_vkeys
from sealward.tlog.receipt import verify_receipt
from sealward.tlog.tiles import TILE_WIDTH, decode_bundle, entries_path

_PUBLISHED_SECONDS = 10.0
_CONSISTENCY_SECONDS = 2.0
_LEAST_ACCURACY = 0.9
_LEAST_R2 = 0.3


@dataclass(frozen=True, slots=True)
class Shipped:
    """A shipped model: its held-out patients, its input and how an answer is shown."""

    model: str
    title: str
    output: str
    columns: tuple[str, ...]
    show: Callable[[dict[str, float], float], Sequence[str]]
    measure: Callable[[Sequence[float], Sequence[float]], dict[str, float]]
    enough: Callable[[dict[str, float]], bool]


@dataclass(slots=True)
class Heldout:
    """Answers beside the truth."""

    columns: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The agreement as text."""
        return ", ".join(f"{name} {value:.3f}" for name, value in self.agreement.items())


def predict_heldout(suite: Suite, user: str, shipped: Shipped) -> Heldout:
    """Ask about every held-out patient of a model, one call each, every receipt verified."""
    result = Heldout(("patient", *shipped.columns, "log entry"))
    given: list[float] = []
    truths: list[float] = []
    with Caller(suite, user, consistency_seconds=_CONSISTENCY_SECONDS) as caller:
        for patient, values, truth in _patients(shipped.model):
            request = ModelInferRequest(model_name=shipped.model, id=patient)
            tensor = request.inputs.add(
                name="measurements", datatype="FP32", shape=[1, len(values)]
            )
            tensor.contents.fp32_contents.extend(values)
            began = time.perf_counter()
            answer = caller.ask(request.SerializeToString(), patient=patient)
            result.milliseconds.append((time.perf_counter() - began) * 1000)
            outputs = _first_values(answer.response)
            given.append(outputs[shipped.output])
            truths.append(truth)
            result.answers.append(answer)
            result.rows.append(
                [patient, *shipped.show(outputs, truth), str(answer.proof.log_index)]
            )
    result.agreement = shipped.measure(given, truths)
    if not shipped.enough(result.agreement):
        result.problems.append(f"{shipped.model} disagrees with the truth: {result.summary}")
    return result


def denied(suite: Suite, user: str, request: bytes) -> dict[str, Any]:
    """Make a call that policy denies; return the refusal. Raise CliError when it was answered."""
    with Caller(suite, user) as caller:
        try:
            caller.ask(request, purpose="TREAT")
        except CliError as error:
            if error.details.get("status") != "PERMISSION_DENIED":
                raise
            if error.details.get("receipt") is None:
                raise CliError("the denied call came without a receipt") from None
            keys = ("status", "reason", "event_id", "log_index")
            return {"message": error.message, **{key: error.details.get(key) for key in keys}}
    raise CliError("an operator was answered a prediction")


def tampered_copy(suite: Suite, entry: int) -> dict[str, Any]:
    """Copy the log, flip one bit of an entry, and verify both; return what the verifier said.

    Raise CliError when the untouched copy does not verify, or the changed one does.
    """
    vkeys = _vkeys(suite)
    _await_published(suite, entry)
    with tempfile.TemporaryDirectory(dir=suite.run, prefix="copy-") as folder:
        copy = Path(folder, "log")
        _copy_log(suite.log_dir, copy)
        try:
            report = verify_directory(copy, vkeys)
        except LogVerificationError as error:
            raise CliError(f"the log does not verify: {error}") from None
        _flip(copy, entry, report.size)
        try:
            verify_directory(copy, vkeys)
        except LogVerificationError as error:
            first = error.findings[0]
            if first.entry != entry:
                raise CliError(f"the verifier blamed {first} for entry {entry}") from None
            return {"size": report.size, "entry": entry, "message": str(first)}
    raise CliError("a changed log was verified")


def verify_offline(suite: Suite, answer: Answer) -> dict[str, Any]:
    """Verify a receipt from bytes and the verifier key alone; return what it shows.

    Then try it on another answer, which has to fail. Raise CliError otherwise.
    """
    vkeys = _vkeys(suite)

    def verify(response: bytes) -> dict[str, Any]:
        verified = verify_receipt(
            answer.proof.receipt,
            vkeys=vkeys,
            request_digest=sha256(answer.request).digest(),
            response_digest=sha256(response).digest(),
            model_digest=bytes.fromhex(answer.proof.model_digest),
            outcome=Outcome.OK,
        )
        return {
            "log_index": verified.index,
            "size": verified.checkpoint.size,
            "origin": verified.checkpoint.origin,
        }

    try:
        found = verify(answer.response)
    except ReceiptError as error:
        raise CliError(f"the receipt does not verify: {error}") from None
    try:
        verify(answer.response + b"\x00")
    except ReceiptError as error:
        return {**found, "other": f"with any other answer: {error}"}
    raise CliError("the receipt verified for another answer")


def _patients(model: str) -> list[tuple[str, list[float], float]]:
    """Return (case, measurements, truth) of a model's held-out patients."""
    spec = importlib.util.find_spec("services")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, "inference", "shipped", model, "heldout.csv")
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                return [
                    (row[0], [float(cell) for cell in row[1:-1]], float(row[-1]))
                    for row in list(csv.reader(file))[1:]
                ]
    raise CliError(f"the held-out patients of {model} are not installed here")


def _first_values(response: bytes) -> dict[str, float]:
    """Return the first value of each output of a serialised ModelInferResponse."""
    from sealward.cli.oip_json import response_to_json

    answer = response_to_json(ModelInferResponse.FromString(response))
    return {output["name"]: float(output["data"][0]) for output in answer["outputs"]}


def _vkeys(suite: Suite) -> list[Verifier]:
    return parse_vkeys(suite.vkey_file.read_text(encoding="utf-8"))


def _await_published(suite: Suite, entry: int) -> None:
    """Wait until the log's files hold an entry: they follow the answer by some milliseconds."""
    deadline = time.monotonic() + _PUBLISHED_SECONDS
    while time.monotonic() < deadline:
        try:
            size = int((suite.log_dir / "checkpoint").read_bytes().split(b"\n")[1])
        except (OSError, IndexError, ValueError):
            size = 0
        if size > entry:
            return
        time.sleep(0.02)
    raise CliError(f"entry {entry} was not published within {_PUBLISHED_SECONDS:.0f} s")


def _copy_log(log: Path, copy: Path) -> None:
    # The checkpoint first: files of a larger tree do no harm, a missing one does.
    copy.mkdir(mode=0o700)
    checkpoint = (log / "checkpoint").read_bytes()
    shutil.copytree(log, copy, dirs_exist_ok=True)
    (copy / "checkpoint").write_bytes(checkpoint)


def _flip(log: Path, entry: int, size: int) -> None:
    bundle, position = divmod(entry, TILE_WIDTH)
    width = min(TILE_WIDTH, size - bundle * TILE_WIDTH)
    path = log / entries_path(bundle, width)
    data = bytearray(path.read_bytes())
    # Each entry is preceded by its length in two bytes; the last byte belongs to the sealed span.
    before = decode_bundle(bytes(data), width)[: position + 1]
    data[sum(2 + len(item) for item in before) - 1] ^= 1
    path.write_bytes(data)


def _accuracy(given: Sequence[float], truths: Sequence[float]) -> dict[str, float]:
    right = sum(g == t for g, t in zip(given, truths, strict=True))
    return {"accuracy": right / len(truths)}


def _regression(given: Sequence[float], truths: Sequence[float]) -> dict[str, float]:
    mean = sum(truths) / len(truths)
    error = sum((g - t) ** 2 for g, t in zip(given, truths, strict=True))
    spread = sum((t - mean) ** 2 for t in truths)
    absolute = sum(abs(g - t) for g, t in zip(given, truths, strict=True)) / len(truths)
    return {"R2": 1 - error / spread, "mean absolute error": absolute}


_LABELS = {0.0: "benign", 1.0: "malignant"}

SHIPPED = (
    Shipped(
        "breast-cancer",
        "breast-cancer: is the mass malignant?",
        "label",
        ("probability", "answer", "truth", "agrees"),
        lambda outputs, truth: (
            f"{outputs['malignant_probability']:.3f}",
            _LABELS[outputs["label"]],
            _LABELS[truth],
            "yes" if outputs["label"] == truth else "NO",
        ),
        _accuracy,
        lambda found: found["accuracy"] >= _LEAST_ACCURACY,
    ),
    Shipped(
        "diabetes-progression",
        "diabetes-progression: disease progression after a year (25 to 346)",
        "progression",
        ("answer", "truth", "difference"),
        lambda outputs, truth: (
            f"{outputs['progression']:.0f}",
            f"{truth:.0f}",
            f"{outputs['progression'] - truth:+.0f}",
        ),
        _regression,
        lambda found: found["R2"] >= _LEAST_R2,
    ),
)
