"""What the blocking and the asynchronous client share: everything but the waiting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from numpy.typing import ArrayLike

from sealward.api.gateway.v1.gateway_pb2 import LoginRequest, LoginResponse
from sealward.client.book import CheckpointBook
from sealward.client.calls import CallList, ListedCall
from sealward.client.connection import Metadata, Reply
from sealward.client.errors import CallError, ClientError
from sealward.client.profile import Profile
from sealward.client.status import call_error
from sealward.client.tensors import (
    Array,
    as_declared,
    decode_response,
    encode_request,
    statements,
)
from sealward.client.verify import Proof, ReceiptVerifier, Trailers
from sealward.kit.reasons import Code

LOGIN = "/sealward.api.gateway.v1.SessionService/Login"
ISSUE_TOKEN = "/sealward.api.gateway.v1.WorkloadService/IssueToken"  # noqa: S105 - a method
LOGOUT = "/sealward.api.gateway.v1.SessionService/Logout"
INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_METADATA = "/inference.GRPCInferenceService/ModelMetadata"
SERVER_READY = "/inference.GRPCInferenceService/ServerReady"

Inputs = ArrayLike | Mapping[str, ArrayLike]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log's head that a receipt refers to: its size, root (32 bytes) and the signed note."""

    origin: str
    size: int
    root: bytes
    note: bytes


@dataclass(frozen=True, slots=True)
class InferResult:
    """A prediction whose receipt was verified.

    `outputs` maps names to arrays; `receipt` is a C2SP tlog-proof that `sealward audit verify` and
    others' tools read; `event_id` (UUID) and `log_index` find the record; `model_digest` is the
    SHA-256 of the model file in hex. `withheld` are the outputs that the caller's role may not see,
    `inputs_dropped` counts inputs that the model does not declare and was not given.
    """

    outputs: Mapping[str, Array]
    receipt: bytes
    event_id: str
    log_index: int
    model_name: str
    model_version: str
    model_digest: str
    checkpoint: Checkpoint
    id: str
    withheld: tuple[str, ...] = ()
    inputs_dropped: int = 0


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output that a model declares; -1 in `shape` is a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model declares of itself."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Session:
    """A session: its public id, its end (seconds since the epoch) and its idle limit (seconds)."""

    session_id: str
    expires: int
    idle_seconds: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed call, and the verified receipt of its record where it has one."""

    error: CallError
    proof: Proof | None


@dataclass(frozen=True, slots=True)
class NumberedCall:
    """A prediction that is about to be sent: its metadata, and its place in the list of calls."""

    metadata: Metadata
    listed: ListedCall


class Core:
    """State of a client: profile, token, list of calls, checkpoints and declared models."""

    def __init__(self, profile: Profile, consistency_interval: float) -> None:
        self.profile = profile
        self.verifier = ReceiptVerifier(profile.vkeys(), profile.vkeys)
        self.book = CheckpointBook(profile, consistency_interval)
        self.calls = CallList(profile.folder, profile.user)
        self._token = ""
        self._models: dict[tuple[str, str], ModelInfo] = {}

    # --- session ----------------------------------------------------------------------------

    def token(self) -> str:
        """Return the session token, of this process or of the profile; raises NotLoggedInError."""
        self._token = self._token or self.profile.token()
        return self._token

    def use_token(self, token: str) -> None:
        """Use this session in this process, whatever session the profile keeps."""
        self._token = token

    def forget_token(self) -> None:
        """Drop the token that this process holds; the profile may have a newer one."""
        self._token = ""

    def bearer(self) -> Metadata:
        """Return the metadata of a call inside the session."""
        return (("authorization", f"Bearer {self.token()}"),)

    def bearer_if_any(self) -> Metadata:
        """Return the session's metadata, or none without a session."""
        try:
            return self.bearer()
        except ClientError:
            return ()

    @contextmanager
    def call(self, purpose: str | None, patient: str | None) -> Iterator[NumberedCall]:
        """Number a prediction and put it into the list of calls; how it ends is listed too.

        Raises ValueError for a purpose or patient reference that metadata cannot carry, and
        ProfileError when the list cannot be written.
        """
        call = self.begin(purpose, patient)
        try:
            yield call
        except BaseException as error:
            call.listed.failed(error)
            raise

    def begin(
        self,
        purpose: str | None,
        patient: str | None,
        *,
        token: str = "",
        seq: int | None = None,
    ) -> NumberedCall:
        """As `call`, for one that ends elsewhere. `token` and `seq` are what a caller chose."""
        extra = (("sealward-purpose", purpose), ("sealward-patient", patient))
        for key, value in extra:
            if value is not None and not (value.isascii() and value.isprintable()):
                raise ValueError(f"{key} must be printable ASCII")
        token = token or self.token()
        listed = self.calls.begin(token, seq)
        metadata = (
            ("authorization", f"Bearer {token}"),
            ("sealward-seq", str(listed.seq)),
            *((key, value) for key, value in extra if value is not None),
        )
        return NumberedCall(metadata, listed)

    def login_request(self, password: str, new_password: str) -> bytes:
        """Return the serialised request of a login."""
        return LoginRequest(
            user=self.profile.user, password=password, new_password=new_password
        ).SerializeToString()

    def logged_in(self, body: bytes) -> Session:
        """Keep the token that a login gave; raises ClientError for an answer without one."""
        try:
            response = LoginResponse.FromString(body)
        except DecodeError:
            response = LoginResponse()
        if not response.token:
            raise ClientError("the answer to the login is not a well-formed message")
        self.profile.keep_token(response.token)
        self.calls.learn(response.token, response.session_id)
        self._token = response.token
        return Session(response.session_id, response.expires, response.idle_seconds)

    def token_request(self, private_jwk: bytes, audience: str, scope: str) -> bytes:
        """Return the serialised request of a program's login; raises ProfileError for no key."""
        from sealward.api.gateway.v1.workload_pb2 import IssueTokenRequest
        from sealward.client.assertion import ASSERTION_TYPE, sign_assertion

        aud = audience or f"https://{self.profile.server_name}{ISSUE_TOKEN}"
        return IssueTokenRequest(
            grant_type="client_credentials",
            client_assertion_type=ASSERTION_TYPE,
            client_assertion=sign_assertion(private_jwk, self.profile.user, aud),
            scope=scope,
        ).SerializeToString()

    def got_token(self, body: bytes) -> Session:
        """Keep the token that a program got; raises ClientError for an answer without one."""
        from sealward.api.gateway.v1.workload_pb2 import IssueTokenResponse

        try:
            answer = IssueTokenResponse.FromString(body)
        except DecodeError:
            answer = IssueTokenResponse()
        return self.logged_in(
            LoginResponse(
                token=answer.access_token,
                session_id=answer.session_id,
                expires=int(time.time()) + answer.expires_in,
                idle_seconds=answer.expires_in,
            ).SerializeToString()
        )

    def logged_out(self) -> None:
        """Forget the token."""
        self._token = ""
        self.profile.keep_token("")

    # --- answers ----------------------------------------------------------------------------

    def refused(self, request: bytes | None, reply: Reply) -> Refusal:
        """Take a failed call apart; `request` is None for a control call. Raises TrustError."""
        trailers = Trailers.parse(reply.trailers)
        proof = self.verifier.refused(request, trailers)
        error = call_error(reply.code, reply.message, reply.trailers, trailers, proof)
        if error.code is Code.UNAUTHENTICATED:
            self.forget_token()
        return Refusal(error, proof)

    def answered(self, request: bytes, reply: Reply) -> Proof:
        """Verify the receipt of a prediction. Raises MissingReceiptError or WrongReceiptError."""
        return self.verifier.answered(request, reply.body, Trailers.parse(reply.trailers))

    def controlled(self, reply: Reply) -> Proof | None:
        """Verify the receipt of a control call, where it has one. Raises TrustError."""
        return self.verifier.control(Trailers.parse(reply.trailers))

    def result(self, reply: Reply, proof: Proof) -> InferResult:
        """Return the prediction of a verified answer."""
        name, version, request_id, outputs = decode_response(reply.body)
        withheld, dropped = statements(reply.body)
        seen = proof.checkpoint
        return InferResult(
            outputs=outputs,
            receipt=proof.receipt,
            event_id=proof.event_id,
            log_index=proof.log_index,
            model_name=name,
            model_version=version,
            model_digest=proof.model_digest,
            checkpoint=Checkpoint(proof.origin, seen.size, seen.root, seen.note),
            id=request_id,
            withheld=withheld,
            inputs_dropped=dropped,
        )

    # --- models -----------------------------------------------------------------------------

    def named_inputs(
        self, info: ModelInfo | None, inputs: Inputs
    ) -> Mapping[str, ArrayLike] | None:
        """Return inputs by name; None when the model's declaration is needed for that first.

        A mapping is taken as it is. An array belongs to the one input of a model that has one, and
        is brought to its datatype. Raises ValueError where the model has more.
        """
        if isinstance(inputs, Mapping):
            return inputs
        if info is None:
            return None
        if len(info.inputs) != 1:
            names = ", ".join(tensor.name for tensor in info.inputs)
            raise ValueError(f"{info.name} has inputs {names}: give a mapping of name to array")
        tensor = info.inputs[0]
        return {tensor.name: as_declared(inputs, tensor.datatype)}

    def known_model(self, model: str, version: str) -> ModelInfo | None:
        """Return what a model declared earlier."""
        return self._models.get((model, version))

    def forget_model(self, model: str, version: str) -> None:
        """Drop what a model declared: it may have changed."""
        self._models.pop((model, version), None)

    def learn_model(self, model: str, version: str, body: bytes) -> ModelInfo:
        """Read and keep a model's declaration; raises ClientError when it is out of form."""
        from sealward.api.oip.v2.open_inference_pb2 import ModelMetadataResponse

        try:
            response = ModelMetadataResponse.FromString(body)
        except DecodeError:
            raise ClientError("the model's metadata is not a well-formed message") from None
        info = ModelInfo(
            response.name,
            tuple(response.versions),
            response.platform,
            tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in response.inputs),
            tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in response.outputs),
            dict(response.properties),
        )
        self._models[model, version] = info
        return info

    @staticmethod
    def metadata_request(model: str, version: str) -> bytes:
        """Return the serialised request for a model's declaration."""
        from sealward.api.oip.v2.open_inference_pb2 import ModelMetadataRequest

        return ModelMetadataRequest(name=model, version=version).SerializeToString()

    @staticmethod
    def infer_request(
        model: str,
        version: str,
        request_id: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Iterable[str] | None,
    ) -> bytes:
        """Return the serialised request of a prediction."""
        return encode_request(model, version, request_id, inputs, outputs)
