"""What the keys service reads: certificate requests of anybody, the answers of a key server."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import parse_identity
from sealward.kit.joining import JoinToken, format_token, parse_token
from sealward.seal.context import EncryptionContext
from services.keys.archive import (
    MANIFEST_SEALED,
    ArchiveError,
    Manifest,
    pack,
    sums,
    unpack,
)
from services.keys.profiles import parse_der_request, parse_pem_request, read_request
from services.keys.providers.vault.api import Api
from services.keys.providers.vault.issuers import Issuers
from services.keys.providers.vault.login import read_token
from services.keys.providers.vault.transit import VaultBranchKeys
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer, _parse, _trouble_of
from tests.fuzz.harness import target
from tests.support.issuing import material, request


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
        api=Api(lambda *_sent: Answer(200, body)),
        once=Api(lambda *_sent: Answer(200, body)),
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


@target(RefusedError, seeds=lambda: [
    b'{"auth":{"client_token":"hvs.abc","policies":["keys"],"lease_duration":3600,"renewable":true}}'
])  # fmt: skip
def login_answer(data: bytes) -> None:
    """What a key server answers to a login: never the token of a root."""
    body = _parse(data)
    token = read_token(body)
    assert math.isfinite(token.seconds)
    assert "root" not in (body["auth"].get("policies") or ())


_ISSUERS = json.dumps({"data": {"key_info": {
    "i-1": {"is_default": True, "issuer_name": "sealward-1", "key_id": "k"},
    "i-2": {"is_default": False, "issuer_name": "sealward-next-2", "key_id": "l"},
}}}).encode()  # fmt: skip


@target(SealwardError, seeds=lambda: [_ISSUERS])
def authorities_of_a_key_server(data: bytes) -> None:
    """The list of issuers; the certificate of each is another target's."""
    body = _parse(data)
    certificate = {"data": {"certificate": material().bundle_pem.decode()}}
    session: Any = SimpleNamespace(
        config=SimpleNamespace(names=SimpleNamespace(pki="pki")),
        api=Api(lambda method, *_: Answer(200, body if method == "list" else certificate)),
    )
    clock = lambda: dt.datetime(2026, 11, 1, tzinfo=dt.UTC)  # noqa: E731
    issuers = Issuers(session, SimpleNamespace(), "sealward.local", clock)  # type: ignore[arg-type]
    issuers.read()
    assert issuers.issuing.key_id
    issuers.states()


@target(SealwardError, seeds=lambda: [_WRAPPED])
def wrapped_key(data: bytes) -> None:
    """A wrapped key of a key server."""
    keys = VaultBranchKeys(
        SimpleNamespace(
            config=SimpleNamespace(
                names=SimpleNamespace(transit="transit"), target=SimpleNamespace(single_host=True)
            ),
            api=Api(lambda *_sent: Answer(200, {})),
        ),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
    )
    assert keys.version_of(data) > 0


def _backup() -> bytes:
    members = {"root.age": b"age", "keystore.sealed": bytes(300), "canary.json": b"{}"}
    manifest = Manifest("d", "sealward.local", 3, 1_790_000_000, ("age1x",), sums(members))
    text = manifest.to_json()
    return pack(text, {**members, MANIFEST_SEALED: hashlib.sha256(text).digest()}, 1_790_000_000)


@target(ArchiveError, seeds=lambda: [_backup()])
def keys_backup(data: bytes) -> None:
    """A backup of the keystore: what is taken has the sums that it lists."""
    archive = unpack(data)
    members = {n: c for n, c in archive.members.items() if n != MANIFEST_SEALED}
    assert sums(members) == archive.manifest.members


@target(ArchiveError, seeds=lambda: [Manifest(
    "d", "sealward.local", 3, 1_790_000_000, ("age1x",), sums({"root.age": b"age"})
).to_json()])  # fmt: skip
def keys_backup_manifest(data: bytes) -> None:
    """The manifest of a backup whose other members are there."""
    unpack(pack(data, {"root.age": b"age", MANIFEST_SEALED: b""}, 0))


def _token() -> bytes:
    identity = parse_identity("spiffe://sealward.local/workload/pacs")
    return format_token(JoinToken(bytes(32), identity, material().bundle_pem, 5, "10.0.0.1:8000"))


@target(StartupError, seeds=lambda: [_token()])
def join_token(data: bytes) -> None:
    """The token file that another machine is given."""
    token = parse_token(data)
    assert json.loads(format_token(token))["spiffe_id"] == token.identity.uri
