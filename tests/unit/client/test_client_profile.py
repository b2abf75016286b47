"""The profile folder, sessions, renewal and declared models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sealward.client import (
    AsyncClient,
    Client,
    DeniedError,
    NotLoggedInError,
    ProfileError,
    WrongReceiptError,
)
from sealward.client.checkpoints import Seen
from sealward.client.profile import Profile, write_private
from sealward.client.renewal import Renewal
from sealward.client.tensors import as_declared, decode_response, encode_request, statements
from sealward.kit.tls import load_material
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.note import Ed25519Signer
from tests.conftest import CertificateAuthority
from tests.support.gateway_double import TOKEN, GatewayDouble, with_trailer

ROWS = {"x": np.ones((1, 3), np.float32)}


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem", "log.vkey", "profile.json"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff not what it should be")
    with pytest.raises(ProfileError) as caught:
        Client.from_profile(folder)
    assert str(folder) in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(ProfileError, match=name):
        Client.from_profile(folder)


def test_a_profile_without_a_field_is_refused(folder: Path) -> None:
    (folder / "profile.json").write_text('{"user": "alice"}')
    with pytest.raises(ProfileError, match="gateway"):
        Client.from_profile(folder)


def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "key.pem").chmod(0o604)
    with pytest.raises(ProfileError, match="chmod 600"):
        Client.from_profile(folder)


def test_login_keeps_the_token_and_logout_forgets_it(folder: Path) -> None:
    (folder / "session").unlink()
    with Client.from_profile(folder) as client:
        with pytest.raises(NotLoggedInError):
            client.infer("m", ROWS)
        with pytest.raises(DeniedError):
            client.login("wrong")
        assert not (folder / "session").exists()
        session = client.login("right")
        assert session.idle_seconds == 900
        assert (folder / "session").read_text() == "n" * 43
        assert (folder / "session").stat().st_mode & 0o777 == 0o600
        client.infer("m", ROWS)
        client.logout()
        with pytest.raises(NotLoggedInError):
            client.infer("m", ROWS)
    assert not (folder / "session").exists()


def test_a_control_call_proves_that_it_was_recorded(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        with pytest.raises(DeniedError) as caught:
            client.login("wrong")
        assert (caught.value.outcome, caught.value.log_index) == ("denied", 0)
        assert caught.value.receipt
        gateway.lie = with_trailer("sealward-log-index", "9")
        for password in ("right", "wrong"):
            with pytest.raises(WrongReceiptError):
                client.login(password)
    assert (folder / "session").read_text() == TOKEN


def test_async_login(folder: Path) -> None:
    async def run() -> None:
        async with AsyncClient.from_profile(folder) as client:
            await client.login("right")
            await client.infer("m", ROWS)
            await client.logout()

    asyncio.run(run())


def test_the_declaration_is_fetched_once(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        for _ in range(3):
            client.infer("m", [[1, 2, 3]])
        info = client.model("m")
    assert gateway.calls["ModelMetadata"] == 1
    assert (info.inputs[0].name, info.inputs[0].shape) == ("x", (-1, 3))


def test_a_certificate_past_half_its_life_is_renewed(
    gateway: GatewayDouble, tmp_path: Path
) -> None:
    # Issued with 60 s behind it, so 50 s more are less than half of its life.
    folder = gateway.profile(tmp_path / "bob", seconds=50, backdate=200)
    before = Profile.load(folder).material()
    with Client.from_profile(folder) as client:
        wait_for(lambda: Profile.load(folder).material().not_after > before.not_after)
        first = gateway.certificates[0]
        wait_for(lambda: client.infer("m", ROWS) is not None and gateway.certificates[-1] != first)
    after = Profile.load(folder).material()
    assert after.key_pem == before.key_pem
    assert gateway.calls["IssueUserCertificate"] == 1


def test_async_renewal(gateway: GatewayDouble, tmp_path: Path) -> None:
    folder = gateway.profile(tmp_path / "bob", seconds=50, backdate=200)

    async def run() -> None:
        async with AsyncClient.from_profile(folder) as client:
            await client.infer("m", ROWS)
            first = gateway.certificates[0]
            async with asyncio.timeout(15):
                while gateway.certificates[-1] == first:
                    await client.infer("m", ROWS)

    asyncio.run(run())


def test_a_certificate_that_somebody_renewed_is_taken_over(
    gateway: GatewayDouble, tmp_path: Path
) -> None:
    folder = gateway.profile(tmp_path / "bob", seconds=50, backdate=200)
    renewal = Renewal(Profile.load(folder))
    due = [renewal.due]
    assert renewal.reload() is None
    old = renewal.material
    leaf = gateway.issue(renewal.request(), None)  # type: ignore[arg-type]
    Renewal(Profile.load(folder)).accept(leaf)
    taken = renewal.reload()
    assert taken is not None
    assert taken.not_after > old.not_after
    assert [*due, renewal.due] == [True, False]
    assert renewal.reload() is None


def test_a_trust_bundle_with_the_next_authority_is_taken_over(
    gateway: GatewayDouble, folder: Path
) -> None:
    """The authority is being replaced: first both are trusted, then the other one signs."""
    renewal = Renewal(Profile.load(folder))
    old, coming = gateway.authority.pem, CertificateAuthority("the next one").pem
    write_private(folder / "ca.pem", old + coming)
    taken = renewal.reload()
    assert taken is not None
    assert taken.bundle_pem == old + coming
    write_private(folder / "ca.pem", coming + old)
    due = [renewal.due, renewal.reload() is not None, renewal.due]
    renewal.failed()
    assert [*due, renewal.due] == [False, True, True, False]


def test_what_cannot_be_read_is_told_once(gateway: GatewayDouble, folder: Path) -> None:
    renewal = Renewal(Profile.load(folder))
    used = renewal.material
    write_private(folder / "ca.pem", b"half")
    with pytest.raises(ProfileError):
        renewal.reload()
    assert renewal.reload() is None
    assert renewal.material is used
    write_private(folder / "ca.pem", used.bundle_pem)
    assert renewal.reload() is None


def test_a_certificate_for_another_identity_is_refused(
    gateway: GatewayDouble, folder: Path
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    from sealward.api.gateway.v1.gateway_pb2 import IssueUserCertificateResponse

    renewal = Renewal(Profile.load(folder))
    key = load_pem_private_key(renewal.material.key_pem, None)
    names = [x509.UniformResourceIdentifier("spiffe://sealward.local/user/mallory")]
    subject = x509.Name([])
    leaf = gateway.authority._build(subject, key.public_key(), names)
    response = IssueUserCertificateResponse(
        certificate_pem=leaf.public_bytes(Encoding.PEM).decode(),
        bundle_pem=gateway.authority.pem.decode(),
    )
    before = (folder / "cert.pem").read_bytes()
    with pytest.raises(ProfileError, match="another identity"):
        renewal.accept(response.SerializeToString())
    foreign = gateway.authority.issue("spiffe://sealward.local/user/alice")
    response.certificate_pem = foreign.chain_pem.decode()
    with pytest.raises(ProfileError, match="cannot be used"):
        renewal.accept(response.SerializeToString())
    assert (folder / "cert.pem").read_bytes() == before
    load_material((folder / "key.pem").read_bytes(), before, renewal.material.bundle_pem)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -2.5]], np.float32),
        np.array([1, 2, 3], np.int64),
        np.array([[True, False]]),
        np.array([1.5], np.float16),
        np.zeros((0, 3), np.float64),
        np.array([["a", "\N{GREEK SMALL LETTER BETA}"], ["", "d"]], np.object_),
    ],
)
def test_arrays_survive_the_wire(array: np.ndarray) -> None:  # type: ignore[type-arg]
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse

    request = ModelInferRequest.FromString(encode_request("m", "", "", {"x": array}, None))
    tensor = request.inputs[0]
    response = ModelInferResponse(model_name="m")
    response.outputs.add(name="x", datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.append(request.raw_input_contents[0])
    back = decode_response(response.SerializeToString())[3]["x"]
    if tensor.datatype == "BYTES":
        assert [item.decode() for item in back.ravel()] == array.ravel().tolist()
    else:
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype
    assert back.shape == array.shape


def test_typed_contents_are_read_too() -> None:
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse

    response = ModelInferResponse(model_name="m")
    output = response.outputs.add(name="y", datatype="FP32", shape=[2])
    output.contents.fp32_contents.extend([0.25, 0.5])
    assert decode_response(response.SerializeToString())[3]["y"].tolist() == [0.25, 0.5]


def test_only_same_kind_casts_are_made() -> None:
    assert as_declared([[1.0]], "FP32").dtype == np.float32
    assert as_declared([[1]], "FP32").dtype == np.float32
    assert as_declared([[1.5]], "INT64").dtype == np.float64


def test_two_clients_of_a_profile_meet_the_next_log_at_once(
    gateway: GatewayDouble, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both want to set the old log's checkpoint aside; the second finds it gone."""
    profile = Profile.load(folder)
    origin = "sealward.local/a/default/2026"
    signer, _ = Ed25519Signer.generate(origin)
    write_private(
        folder / "checkpoint", sign_checkpoint(Checkpoint(origin, 1, bytes(32)), [signer])
    )
    real = Path.replace

    def late(path: Path, target: Path) -> Path:
        if path.name == "checkpoint":
            real(path, target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", late)
    profile.keep_checkpoint("sealward.local/a/default/2027", Seen(1, bytes(32), b"another note"))
    assert (folder / "checkpoint").read_bytes() == b"another note"


def test_an_answer_says_what_was_left_out_and_dropped() -> None:
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse

    response = ModelInferResponse(model_name="m")
    assert statements(response.SerializeToString()) == ((), 0)
    response.parameters["sealward_outputs_withheld"].string_param = "factors,label"
    assert statements(response.SerializeToString()) == (("factors", "label"), 0)
    response.parameters["sealward_inputs_dropped"].int64_param = 3
    assert statements(response.SerializeToString()) == (("factors", "label"), 3)
