"""What the keys service reads: certificate requests of anybody, the answers of a key server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from sealward.kit.errors import SealwardError
from sealward.seal.context import EncryptionContext
from services.keys.profiles import parse_der_request, parse_pem_request, read_request
from services.keys.providers.vault.transit import VaultBranchKeys
from services.keys.providers.vault.wire import Answer, _parse, _trouble_of
from tests.fuzz.harness import target
from tests.support.issuing import request


@target(SealwardError, seeds=lambda: [request(Encoding.DER)])
def certificate_request_der(data: bytes) -> None:
    """A certificate request in a call."""
    read_request(parse_der_request(data))


@target(SealwardError, seeds=lambda: [request(Encoding.PEM)])
def certificate_request_pem(data: bytes) -> None:
    """A certificate request in the enrolment folder."""
    read_request(parse_pem_request(data))


_CONTEXT = EncryptionContext("default", "job", "j-1")
_WRAPPED = b"vault:v3:" + b"QUJD" * 8
_DATA_KEY = (
    b'{"data":{"plaintext":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",'
    b'"ciphertext":"vault:v3:QUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJD"}}'
)
_ANSWERS = (
    _DATA_KEY,
    b'{"data":{"keys":{"3":1790000000,"4":1790000001},"latest_version":4}}',
    b'{"data":{"keys":["default.job"]}}',
    b'{"data":{"batch_results":[{"ciphertext":"vault:v4:QUJDQUJDQUJDQUJDQUJD"}]}}',
    b'{"errors":["key not found"]}',
    b"<html>a proxy</html>",
    b"",
)


@target(SealwardError, seeds=lambda: _ANSWERS)
def key_server_answer(data: bytes) -> None:
    """Whatever a key server answers, to each kind of request."""
    body = _parse(data)
    for status in (200, 400, 404, 429, 503):
        _trouble_of(Answer(status, body), "p")
    names: Any = SimpleNamespace(transit="transit", key=lambda name: f"transit/keys/{name}")
    session: Any = SimpleNamespace(
        config=SimpleNamespace(names=names, target=SimpleNamespace(single_host=True)),
        call=lambda *_args, **_named: Answer(200, body),
    )
    keys = VaultBranchKeys(session, SimpleNamespace())  # type: ignore[arg-type]
    keys._seen.update(("default.job", "default-job"))
    keys._known = bool  # type: ignore[method-assign,assignment]
    calls: Sequence[Callable[[], object]] = (
        lambda: keys.create(_CONTEXT),
        lambda: keys.open(_CONTEXT, _WRAPPED),
        keys.names,
        lambda: keys.versions("default", "job"),
        lambda: keys.rotate("default", "job"),
        lambda: keys.rewrap([(_CONTEXT, _WRAPPED)]),
    )
    refused: list[SealwardError] = []
    for call in calls:
        try:
            call()
        except SealwardError as error:
            refused.append(error)
    if len(refused) == len(calls):
        raise refused[0]


@target(SealwardError, seeds=lambda: [_WRAPPED])
def wrapped_key(data: bytes) -> None:
    """A wrapped key of a key server."""
    keys = VaultBranchKeys(
        SimpleNamespace(
            config=SimpleNamespace(names=None, target=SimpleNamespace(single_host=True))
        ),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
    )
    assert keys.version_of(data) > 0
