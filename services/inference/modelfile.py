"""What a model file may be, decided from its bytes before ONNX Runtime sees them.

ONNX Runtime is a large parser with kernels that were written for files of friends. What it would be
tempted to do on behalf of a file is refused here: read other files (external data), load code
(other domains), loop without a bound, reserve memory for data that is not there. Nothing of the
file is copied, nothing recurses.

Format: onnx.proto3 of ONNX 1.21 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the
numbers below are its field numbers. What is unknown there is unknown here, and passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sealward.kit.wire import BYTES, VARINT, WireError, read_varint, scan
from services.inference.operators import OPERATORS

MAX_NODES = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 16
_MAX_ATTRIBUTES = 1024
# The smallest element has two bits.
_ELEMENTS_A_BYTE = 4

_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS = 5, 10
_ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 13, 14

_PRINTABLE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")


class ModelFileError(ValueError):
    """The file is not run. Its text says what is wrong with it, and where."""


def check_model_file(onnx: bytes) -> None:
    """Raise ModelFileError for a file that is not run."""
    try:
        _check_model(memoryview(onnx))
    except WireError:
        raise ModelFileError("the file is no ONNX model") from None


def _check_model(model: memoryview) -> None:
    graphs = []
    opsets = 0
    for number, content in _messages(model):
        if number == _MODEL_GRAPH:
            graphs.append(content)
        elif number == _MODEL_OPSETS:
            _check_opset(content)
            opsets += 1
        elif number == _MODEL_FUNCTIONS:
            raise ModelFileError("it has functions of its own; export it with them inlined")
        elif number == _MODEL_TRAINING:
            raise ModelFileError("it holds a training graph")
    if len(graphs) != 1 or not opsets:
        raise ModelFileError("the file is no ONNX model")
    _check_graph(graphs[0])


def _check_opset(opset: memoryview) -> None:
    domain, version = "", 0
    for number, kind, start, end in scan(opset):
        if (number, kind) == (_OPSET_DOMAIN, BYTES):
            domain = _text(opset[start:end])
        elif (number, kind) == (_OPSET_VERSION, VARINT):
            version = read_varint(opset, start)[0]
    if domain not in OPERATORS:
        raise ModelFileError(
            f"it needs the operators of {_shown(domain, 'another domain')}, which is not known here"
        )
    if not 0 < version < 1 << 16:
        raise ModelFileError("it names no version of its operators")


def _check_graph(graph: memoryview) -> None:
    nodes = tensors = 0
    for number, content in _messages(graph):
        if number == _GRAPH_NODE:
            nodes += 1
            if nodes > MAX_NODES:
                raise ModelFileError(f"it has more than {MAX_NODES} nodes")
            tensors += _check_node(content, nodes)
        elif number == _GRAPH_INITIALIZER:
            tensors += 1
            _check_tensor(content, f"initializer {tensors}")
        elif number == _GRAPH_SPARSE:
            raise ModelFileError("it has sparse initializers; export it with dense ones")
        if tensors > MAX_TENSORS:
            raise ModelFileError(f"it has more than {MAX_TENSORS} tensors")
    if not nodes:
        raise ModelFileError("it computes nothing")


def _check_node(node: memoryview, place: int) -> int:
    """Return how many tensors its attributes hold."""
    domain = operator = ""
    attributes = tensors = 0
    for number, content in _messages(node):
        if number == _NODE_DOMAIN:
            domain = _text(content)
        elif number == _NODE_TYPE:
            operator = _text(content)
        elif number == _NODE_ATTRIBUTE:
            attributes += 1
            if attributes > _MAX_ATTRIBUTES:
                raise ModelFileError(f"node {place} has more than {_MAX_ATTRIBUTES} attributes")
            tensors += _check_attribute(content, place)
    if operator not in OPERATORS.get(domain, ()):
        of = f" of {_shown(domain, 'another domain')}" if domain else ""
        raise ModelFileError(
            f"node {place}: the operator {_shown(operator, 'without a proper name')}{of} is not on"
            " the list of those that may run (services/inference/operators.py)"
        )
    return tensors


def _check_attribute(attribute: memoryview, place: int) -> int:
    tensors, single = 0, False
    for number, content in _messages(attribute):
        if number == _ATTRIBUTE_TENSOR:
            if single:
                # A protobuf parser would merge them into a third one, which nobody has looked at.
                raise ModelFileError(f"node {place} gives one tensor twice")
            single = True
        if number in _ATTRIBUTE_GRAPHS:
            raise ModelFileError(f"node {place} has a graph inside (control flow)")
        if number in _ATTRIBUTE_SPARSE:
            raise ModelFileError(f"node {place} has a sparse tensor inside")
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            tensors += 1
            _check_tensor(content, f"node {place}")
    return tensors


def _check_tensor(tensor: memoryview, where: str) -> None:
    dimensions: list[int] = []
    for number, kind, start, end in scan(tensor):
        if number == _TENSOR_EXTERNAL or (
            (number, kind) == (_TENSOR_LOCATION, VARINT) and read_varint(tensor, start)[0]
        ):
            raise ModelFileError(
                f"{where}: the data is in a file of its own; export it in one file"
            )
        if number == _TENSOR_DIMS and kind in (VARINT, BYTES):
            while start < end:
                dimension, start = read_varint(tensor, start)  # noqa: PLW2901
                dimensions.append(dimension)
                if len(dimensions) > MAX_DIMENSIONS:
                    raise ModelFileError(f"{where} has more than {MAX_DIMENSIONS} dimensions")
    # Step by step, so that a product of large numbers is never made; a negative one is large too.
    elements = 1
    for dimension in sorted(dimensions):
        elements *= dimension
        if elements > _ELEMENTS_A_BYTE * len(tensor):
            raise ModelFileError(f"{where} is larger than the data that the file holds for it")


def _messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the length-delimited fields."""
    for number, kind, start, end in scan(message):
        if kind == BYTES:
            yield number, message[start:end]


def _text(content: memoryview) -> str:
    return bytes(content[:256]).decode("utf-8", "replace")


def _shown(name: str, instead: str) -> str:
    return name if _PRINTABLE.fullmatch(name) else instead
