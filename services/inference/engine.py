"""Runs one model with ONNX Runtime: on the CPU, from memory, only after its self-test passed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from services.inference.datatypes import Array
from services.inference.golden import Golden, to_array
from services.inference.manifest import Manifest, TensorSpec
from services.inference.runtime import PROVIDER, RuntimeSpec

_ONNX_BF16 = 16
# Row counts and sizes up to which inputs and outputs have buffers of their own.
_BOUND_ROWS = 8
_BOUND_BYTES = 256 * 1024


class EngineError(Exception):
    """The model cannot be used. Its text is ours: it quotes neither values nor the runtime."""


class RunError(Exception):
    """One run failed. The runtime's own text is not kept: it may quote the input."""


class Engine:
    """One opened model. Thread-safe; one run at a time, because runs share buffers."""

    def __init__(self, manifest: Manifest, onnx: bytes, runtime: RuntimeSpec) -> None:
        self._inputs = manifest.inputs
        self._outputs = manifest.outputs
        self._input_names = [spec.name for spec in manifest.inputs]
        self._output_names = [spec.name for spec in manifest.outputs]
        self._strict = manifest.deterministic == "strict"
        self._lock = threading.Lock()
        self._bindings: dict[int, _Binding] = {}
        try:
            self._session: Any = onnxruntime.InferenceSession(
                onnx, sess_options=runtime.options(), providers=[PROVIDER]
            )
        except Exception as error:  # noqa: BLE001 - its text may quote the file
            raise EngineError(f"the model does not load ({type(error).__name__})") from None
        self._check_declared()
        self._bindable = _can_bind((*self._inputs, *self._outputs))
        if not self._bindable and any(
            s.datatype == "BF16" for s in (*self._inputs, *self._outputs)
        ):
            raise EngineError("BF16 tensors need shapes that the number of rows decides")

    def run(self, inputs: Sequence[Array], rows: int) -> Sequence[Array]:
        """Run checked inputs, in the manifest's order; return all outputs in its order.

        Raises RunError.
        """
        with self._lock:
            try:
                if self._bindable:
                    if rows <= _BOUND_ROWS:
                        return self._bound(rows).run(inputs)
                    if self._needs_binding:
                        return _Binding(self._session, self._inputs, self._outputs, rows).run(
                            inputs
                        )
                feeds = dict(zip(self._input_names, inputs, strict=True))
                outputs: Sequence[Array] = self._session.run(self._output_names, feeds)
            except Exception as error:  # noqa: BLE001 - its text may quote the input
                raise RunError(type(error).__name__) from None
        self._check_made(outputs, rows)
        return outputs

    def self_test(self, golden: Golden) -> None:
        """Run every golden case; raise EngineError at the first answer that differs.

        A strict model is run twice more, by the other path also, and must give the same bits.
        """
        for case in golden.cases:
            inputs = [to_array(t, s) for t, s in zip(case.inputs, self._inputs, strict=True)]
            wanted = [to_array(t, s) for t, s in zip(case.outputs, self._outputs, strict=True)]
            rows = inputs[0].shape[0] if self._inputs[0].has_rows else 1
            first = self._try(inputs, rows, case.name)
            for spec, got, expected in zip(self._outputs, first, wanted, strict=True):
                if not golden.agrees(spec, got, expected):
                    raise EngineError(f"self-test {case.name}: output {spec.name} differs")
            if self._strict:
                for again in (self._try(inputs, rows, case.name), self._try_unbound(inputs, rows)):
                    if any(not _same_bits(a, b) for a, b in zip(first, again, strict=True)):
                        raise EngineError(f"self-test {case.name}: two runs give different bits")

    def _try(self, inputs: Sequence[Array], rows: int, case: str) -> Sequence[Array]:
        try:
            return self.run(inputs, rows)
        except RunError as error:
            raise EngineError(f"self-test {case}: the run failed ({error})") from None

    def _try_unbound(self, inputs: Sequence[Array], rows: int) -> Sequence[Array]:
        if self._needs_binding:
            return self._try(inputs, rows, "again")
        feeds = dict(zip(self._input_names, inputs, strict=True))
        outputs: Sequence[Array] = self._session.run(self._output_names, feeds)
        return outputs

    @property
    def _needs_binding(self) -> bool:
        return any(s.datatype == "BF16" for s in (*self._inputs, *self._outputs))

    def _bound(self, rows: int) -> _Binding:
        binding = self._bindings.get(rows)
        if binding is None:
            binding = _Binding(self._session, self._inputs, self._outputs, rows)
            if binding.size <= _BOUND_BYTES:
                self._bindings[rows] = binding
        return binding

    def _check_declared(self) -> None:
        """The manifest and the file must name the same tensors, of the same types and shapes."""
        for side, specs, nodes in (
            ("input", self._inputs, self._session.get_inputs()),
            ("output", self._outputs, self._session.get_outputs()),
        ):
            by_name = {node.name: node for node in nodes}
            if set(by_name) != {spec.name for spec in specs}:
                raise EngineError(f"the model's {side}s are not the declared ones")
            for spec in specs:
                node = by_name[spec.name]
                if node.type != spec.type.ort:
                    raise EngineError(f"{side} {spec.name} has another datatype than declared")
                if not _shapes_agree(node.shape, spec.shape):
                    raise EngineError(f"{side} {spec.name} has another shape than declared")

    def _check_made(self, outputs: Sequence[Array], rows: int) -> None:
        """A model whose answer is not of its declared shape must not be answered with."""
        for spec, output in zip(self._outputs, outputs, strict=True):
            wanted = spec.shape_for(rows)
            if len(output.shape) != len(wanted) or any(
                w not in (-1, got) for w, got in zip(wanted, output.shape, strict=True)
            ):
                raise RunError("output shape")


class _Binding:
    """Buffers for one number of rows, bound once: half the cost of handing over new arrays."""

    def __init__(
        self, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: int
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = [_buffer(spec, rows) for spec in inputs]
        self._outputs = [_buffer(spec, rows) for spec in outputs]
        for spec, array in zip(inputs, self._inputs, strict=True):
            self._binding.bind_input(
                spec.name, "cpu", 0, _element(spec), array.shape, array.ctypes.data
            )
        for spec, array in zip(outputs, self._outputs, strict=True):
            self._binding.bind_output(
                spec.name, "cpu", 0, _element(spec), array.shape, array.ctypes.data
            )
        self.size = sum(array.nbytes for array in (*self._inputs, *self._outputs))

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        for target, source in zip(self._inputs, inputs, strict=True):
            target[...] = source
        self._session.run_with_iobinding(self._binding)
        return [output.copy() for output in self._outputs]


def _can_bind(specs: Sequence[TensorSpec]) -> bool:
    return all(s.row_items is not None and s.datatype != "BYTES" for s in specs)


def _buffer(spec: TensorSpec, rows: int) -> Array:
    return np.zeros(spec.shape_for(rows), dtype=spec.type.numpy)


def _element(spec: TensorSpec) -> Any:
    return _ONNX_BF16 if spec.datatype == "BF16" else spec.type.numpy.type


def _shapes_agree(node: Sequence[Any], declared: Sequence[int]) -> bool:
    """The file's fixed dimensions must be the declared ones; its variable ones may be fixed."""
    return len(node) == len(declared) and all(
        not isinstance(size, int) or size == wanted
        for size, wanted in zip(node, declared, strict=True)
    )


def _same_bits(one: Array, other: Array) -> bool:
    if one.dtype == object:
        return bool(np.array_equal(one, other))
    return one.shape == other.shape and one.tobytes() == other.tobytes()
