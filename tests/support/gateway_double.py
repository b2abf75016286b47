"""A gateway with behaviour for the client's tests: mutual TLS, a real log, and the power to lie."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.client.profile import Profile, write_private
from sealward.kit.tls import Credentials, Material
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.cosignature import Cosigner
from sealward.tlog.leaf import MIN_SEALED_SIZE, NO_DIGEST, Outcome, binding, leaf_prefix
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.note import Ed25519Signer
from sealward.tlog.receipt import format_receipt
from tests.support.tlog_logs import signer

MODEL_DIGEST = sha256(b"model").hexdigest()
USER = "spiffe://sealward.local/user/alice"
NAME = "gateway.sealward.local"
TOKEN = "t" * 43
Trailers = list[tuple[str, str | bytes]]


@dataclass
class Sent:
    """What leaves with an answer; a test's `lie` may change any of it."""

    body: bytes
    trailers: Trailers


@dataclass
class GatewayDouble:
    """State of the double. `calls` counts by method; `metadata` is that of each ModelInfer."""

    authority: Any
    tree: Tree = field(default_factory=Tree)
    lie: Callable[[Sent], Sent] = lambda sent: sent
    deny: grpc.StatusCode | None = None
    proof_error: grpc.StatusCode | None = None
    spoil_proof: bool = False
    hold: threading.Event | None = None
    calls: dict[str, int] = field(default_factory=dict)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)
    leaf_seconds: int = 86_400
    witnesses: list[Cosigner] = field(default_factory=list)
    lie_of_receipt: Callable[[bytes], bytes] = lambda proof: proof

    def __post_init__(self) -> None:
        self.signer = signer()
        self.ended: dict[str, Tree] = {}
        self.entries: dict[bytes, tuple[int, bytes]] = {}
        self.lock = threading.Lock()
        material = self.authority.issue(
            "spiffe://sealward.local/service/gateway", dns=(NAME, "localhost")
        )
        self.server = grpc.server(ThreadPoolExecutor(8))
        methods: dict[str, Any] = {
            "inference.GRPCInferenceService/ModelInfer": self.infer,
            "inference.GRPCInferenceService/ModelMetadata": self.model_metadata,
            "sealward.api.gateway.v1.LogService/GetConsistency": self.consistency,
            "sealward.api.gateway.v1.LogService/GetReceipt": self.receipt,
            "sealward.api.gateway.v1.SessionService/Login": self.login,
            "sealward.api.gateway.v1.SessionService/Logout": lambda _b, _c: b"",
            "sealward.api.gateway.v1.UserService/IssueUserCertificate": self.issue,
        }
        for full, behaviour in methods.items():
            service, name = full.split("/")
            handler = grpc.unary_unary_rpc_method_handler(self.counted(name, behaviour))
            self.server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {name: handler}),)
            )
        self.port = self.server.add_secure_port("127.0.0.1:0", Credentials(material).server())
        self.server.start()

    def counted(self, name: str, behaviour: Any) -> Any:
        def call(body: bytes, context: grpc.ServicerContext) -> bytes:
            with self.lock:
                self.calls[name] = self.calls.get(name, 0) + 1
                pem = dict(context.auth_context())["x509_pem_cert"][0]
                self.certificates.append(str(x509.load_pem_x509_certificate(pem).serial_number))
            answer: bytes = behaviour(body, context)
            return answer

        return call

    def profile(self, folder: Path, seconds: int = 86_400, backdate: int = 60) -> Path:
        """Write a profile folder for alice."""
        folder.mkdir(mode=0o700)
        material: Material = self.authority.issue(USER, seconds=seconds, backdate=backdate)
        for name, data in {
            "ca.pem": material.bundle_pem,
            "cert.pem": material.chain_pem,
            "key.pem": material.key_pem,
            "log.vkey": self.signer.vkey.encode() + b"\n",
            "session": TOKEN.encode(),
            "profile.json": (
                f'{{"user": "alice", "gateway": "127.0.0.1:{self.port}",'
                f' "server_name": "{NAME}", "spiffe_id": "{USER}"}}'
            ).encode(),
        }.items():
            write_private(folder / name, data)
        return folder

    def grow(self, count: int = 1) -> None:
        """Append entries of others."""
        with self.lock:
            self.tree.append([leaf_hash(os.urandom(120)) for _ in range(count)])

    def rewrite(self, size: int) -> None:
        """Replace the log by another history of this size."""
        with self.lock:
            self.tree = Tree(leaf_hash(b"forged %d" % at) for at in range(size))

    def turn(self, origin: str) -> None:
        """End the log; another one with another key follows."""
        with self.lock:
            self.ended[self.signer.name] = self.tree
            self.signer, _ = Ed25519Signer.generate(origin)
            self.tree = Tree()

    def record(
        self, request: bytes | None, response: bytes | None, model: bytes, outcome: Outcome
    ) -> Trailers:
        """Append an entry for a call and return its trailers."""
        event, salt = uuid.uuid4(), os.urandom(32)
        asked, answer = (
            NO_DIGEST if part is None else sha256(part).digest() for part in (request, response)
        )
        bound = binding(salt, asked, answer, model, outcome)
        leaf = leaf_prefix(event.bytes, bound) + os.urandom(MIN_SEALED_SIZE)
        with self.lock:
            index = self.tree.append([leaf_hash(leaf)]) - 1
            self.entries[event.bytes] = (index, leaf)
            checkpoint = Checkpoint(self.signer.name, self.tree.size, self.tree.root())
            path = self.tree.inclusion(index)
        note = sign_checkpoint(checkpoint, [self.signer])
        return [
            ("sealward-event-id", str(event)),
            ("sealward-log-index", str(index)),
            ("sealward-receipt-bin", format_receipt(index, path, leaf, salt, note)),
        ]

    def infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Double every input."""
        self.metadata.append({item[0]: item[1] for item in context.invocation_metadata()})
        self.requests.append(body)
        if self.hold is not None:
            self.hold.wait(20)
        if self.deny is not None:
            outcome = (
                Outcome.DENIED if self.deny is grpc.StatusCode.PERMISSION_DENIED else Outcome.FAILED
            )
            sent = self.lie(Sent(b"", self.record(body, None, NO_DIGEST, outcome)))
            status = Status(code=self.deny.value[0], message="no rule permits this call")
            info = ErrorInfo(reason="POLICY_DENIED", domain="sealward")
            info.metadata["field"] = "model_name"
            status.details.add().Pack(info)
            retry = RetryInfo()
            retry.retry_delay.FromMilliseconds(1500)
            status.details.add().Pack(retry)
            details = ("grpc-status-details-bin", status.SerializeToString())
            context.set_trailing_metadata((*sent.trailers, details))
            context.abort(self.deny, status.message)
        request = oip.ModelInferRequest.FromString(body)
        response = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.parameters["sealward_model_digest"].string_param = MODEL_DIGEST
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            dtype = {"FP32": "<f4", "INT64": "<i8"}[tensor.datatype]
            response.raw_output_contents.append((np.frombuffer(raw, dtype) * 2).tobytes())
        answer = response.SerializeToString()
        trailers = self.record(body, answer, bytes.fromhex(MODEL_DIGEST), Outcome.OK)
        sent = self.lie(Sent(answer, trailers))
        context.set_trailing_metadata(tuple(sent.trailers))
        return sent.body

    def model_metadata(self, body: bytes, _context: grpc.ServicerContext) -> bytes:
        request = oip.ModelMetadataRequest.FromString(body)
        response = oip.ModelMetadataResponse(name=request.name, versions=["1"], platform="onnx")
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
        if request.name == "two":
            response.inputs.add(name="y", datatype="FP32", shape=[-1, 3])
        return response.SerializeToString()

    def consistency(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        if self.proof_error is not None:
            context.abort(self.proof_error, "no")
        request = gw.GetConsistencyRequest.FromString(body)
        sizes = list(request.sizes)
        proofs = []
        with self.lock:
            tree = self.ended.get(request.origin, self.tree)
            if sizes[-1] > tree.size:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such size")
            for old, new in itertools.pairwise(sizes):
                proof = b"".join(tree.consistency(old, new))
                proofs.append(bytes(len(proof)) if self.spoil_proof else proof)
        return gw.GetConsistencyResponse(proofs=proofs).SerializeToString()

    def receipt(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        request = gw.GetReceiptRequest.FromString(body)
        assert request.cosigned
        if not self.witnesses:
            status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="not cosigned yet")
            status.details.add().Pack(ErrorInfo(reason="NOT_COSIGNED", domain="sealward"))
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode.UNAVAILABLE, status.message)
        with self.lock:
            index, leaf = self.entries[request.event_id]
            checkpoint = Checkpoint(self.signer.name, self.tree.size, self.tree.root())
            path = self.tree.inclusion(index)
        note = sign_checkpoint(checkpoint, [self.signer, *self.witnesses])
        proof = self.lie_of_receipt(format_receipt(index, path, leaf, bytes(32), note))
        return gw.GetReceiptResponse(receipt=proof).SerializeToString()

    def login(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        request = gw.LoginRequest.FromString(body)
        right = request.password == "right"
        # A control call's record binds no bytes.
        outcome = Outcome.OK if right else Outcome.DENIED
        sent = self.lie(Sent(b"", self.record(None, None, NO_DIGEST, outcome)))
        context.set_trailing_metadata(tuple(sent.trailers))
        if not right:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "user name or password is wrong")
        return gw.LoginResponse(
            token="n" * 43, expires=1, idle_seconds=900, session_id="s"
        ).SerializeToString()

    def issue(self, body: bytes, _context: grpc.ServicerContext) -> bytes:
        csr = x509.load_der_x509_csr(gw.IssueUserCertificateRequest.FromString(body).csr)
        assert csr.is_signature_valid
        leaf = self.authority._build(
            csr.subject,
            csr.public_key(),
            [x509.UniformResourceIdentifier(USER)],
            seconds=self.leaf_seconds,
        )
        return gw.IssueUserCertificateResponse(
            certificate_pem=leaf.public_bytes(Encoding.PEM).decode(),
            bundle_pem=self.authority.pem.decode(),
            not_after=int(leaf.not_valid_after_utc.timestamp()),
        ).SerializeToString()

    def stop(self) -> None:
        self.server.stop(None).wait(10)


def without(key: str) -> Callable[[Sent], Sent]:
    """A lie that leaves one trailer out."""
    return lambda sent: replace(sent, trailers=[item for item in sent.trailers if item[0] != key])


def with_trailer(key: str, value: str | bytes) -> Callable[[Sent], Sent]:
    """A lie that puts another value into one trailer."""
    return lambda sent: replace(
        sent, trailers=[(k, value if k == key else v) for k, v in sent.trailers]
    )


def load(folder: Path) -> Profile:
    return Profile.load(folder)
