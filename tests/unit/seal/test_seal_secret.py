"""A secret shows itself to nobody who does not ask by name."""

from __future__ import annotations

import copy
import io
import json
import logging
import marshal
import pickle
import pprint
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import structlog

from sealward.seal.secret import Secret

VALUE = b"CANARY-CANARY-CANARY-CANARY-1234"
SECRET = Secret(VALUE)


def clean(text: str) -> bool:
    return "CANARY" not in text and VALUE.hex() not in text


@dataclass(frozen=True)
class Holder:
    name: str
    key: Secret


HOLDER = Holder("name", SECRET)


def test_it_gives_what_it_was_given() -> None:
    assert SECRET.reveal() == VALUE
    assert len(SECRET) == 32
    assert Secret(bytearray(VALUE)) == SECRET  # type: ignore[arg-type]
    assert Secret(bytes(32)) != SECRET
    # Equal to no bytes, or a comparison with == would not be in constant time.
    assert SECRET != VALUE


@pytest.mark.parametrize(
    "shown",
    [
        repr(SECRET), str(SECRET), f"{SECRET}", f"{SECRET!r:>40}",
        ascii(SECRET), repr([SECRET]), repr({"key": SECRET}), repr(HOLDER),
        pprint.pformat(HOLDER), str(asdict(HOLDER)), repr(copy.deepcopy([SECRET])),
        repr(dir(SECRET)), repr(copy.copy(SECRET)),
    ],
)  # fmt: skip
def test_no_text_shows_it(shown: str) -> None:
    assert clean(shown)


@pytest.mark.parametrize(
    "serialise",
    [
        *(lambda p=p: pickle.dumps(SECRET, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda: pickle.dumps(HOLDER),
        lambda: json.dumps(SECRET),
        lambda: marshal.dumps(SECRET),
        lambda: bytes(SECRET),  # type: ignore[call-overload]
        lambda: memoryview(SECRET),  # type: ignore[arg-type]
        lambda: list(SECRET),  # type: ignore[call-overload]
        lambda: b"" + SECRET,  # type: ignore[operator]
        lambda: vars(SECRET),
        lambda: hash(SECRET),
        lambda: {SECRET: 1},
    ],
)
def test_nothing_serialises_it(serialise: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        serialise()
    assert clean(str(caught.value))


def test_no_log_and_no_traceback_shows_it() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logger = logging.getLogger("test-secret")
    logger.propagate = False
    logger.addHandler(handler)
    logger.error("%s %r", SECRET, HOLDER, extra={"key": SECRET})
    lines = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[structlog.processors.JSONRenderer(default=repr)],
    )
    lines.info("event", key=SECRET, holder=HOLDER)
    try:
        raise RuntimeError(SECRET)
    except RuntimeError as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        out.writelines(shown.format())
    assert "Secret()" in out.getvalue()
    assert clean(out.getvalue())
