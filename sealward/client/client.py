"""The blocking client."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sealward.api.gateway.v1.gateway_pb2 import LogoutRequest
from sealward.client import core as calls
from sealward.client import cosigned as cosignatures
from sealward.client import renewal as renewals
from sealward.client.connection import Connection, open_channel
from sealward.client.core import Core, InferResult, Inputs, ModelInfo, Session
from sealward.client.cosigned import CosignedReceipt
from sealward.client.errors import ConsistencyUnavailableError, InvalidRequestError, ProfileError
from sealward.client.guard import Guard
from sealward.client.profile import Profile
from sealward.client.renewal import LOOK_SECONDS, Renewal
from sealward.kit.reasons import Code
from sealward.tlog.policy import Policy

_CONTROL_SECONDS = 30.0
_LOG = logging.getLogger("sealward.client")


class Client:
    """Predictions with a receipt that was verified before they are returned. Thread-safe.

    Use it as a context manager or call `close`. `consistency_interval` is the time (seconds) that
    checkpoints may wait before it is proven that the log only grew; 0 proves it with every call.
    """

    def __init__(self, profile: Profile, *, consistency_interval: float = 0.0) -> None:
        self._core = Core(profile, consistency_interval)
        self._renewal = Renewal(profile)
        self._connection = Connection(open_channel(profile, self._renewal.material))
        self._guard = Guard(self._core, self._connection)
        self._renewer = Renewer(self._core, self._renewal, self._connection)
        self._renewer.start()

    @classmethod
    def from_profile(
        cls, folder: str | os.PathLike[str], *, consistency_interval: float = 0.0
    ) -> Self:
        """Connect with a profile folder (`clients/<user>` of a suite); raises ProfileError."""
        return cls(Profile.load(folder), consistency_interval=consistency_interval)

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self._core.profile

    def login(self, password: str, new_password: str = "") -> Session:
        """Begin a session and keep its token in the profile.

        `new_password` replaces a password that was issued for one use. Raises CallError with reason
        LOGIN_FAILED or PASSWORD_CHANGE_REQUIRED.
        """
        request = self._core.login_request(password, new_password)
        return self._core.logged_in(self._control(calls.LOGIN, request))

    def login_with_key(self, private_jwk: bytes, *, audience: str = "", scope: str = "") -> Session:
        """Begin the session of a program with its private key (JWK), for five minutes at most.

        Log in again before it ends: each time with an assertion of its own. `audience` is what the
        server wants as `aud`, if it is not the usual; `scope` names some of the client's roles.
        Raises CallError with reason ASSERTION_INVALID or SCOPE_REFUSED, and ProfileError.
        """
        request = self._core.token_request(private_jwk, audience, scope)
        return self._core.got_token(self._control(calls.ISSUE_TOKEN, request))

    def logout(self) -> None:
        """End the session at the server and forget its token. Raises CallError."""
        self._control(calls.LOGOUT, LogoutRequest().SerializeToString(), session=True)
        self._core.logged_out()

    def ready(self) -> bool:
        """Whether the suite can answer predictions now. Raises CallError."""
        from sealward.api.oip.v2.open_inference_pb2 import ServerReadyRequest, ServerReadyResponse

        body = self._control(calls.SERVER_READY, ServerReadyRequest().SerializeToString())
        return ServerReadyResponse.FromString(body).ready

    def model(self, name: str, version: str = "") -> ModelInfo:
        """Return what a model declares; asked once and kept. Raises CallError."""
        known = self._core.known_model(name, version)
        if known is not None:
            return known
        request = self._core.metadata_request(name, version)
        body = self._control(calls.MODEL_METADATA, request, session=True)
        return self._core.learn_model(name, version, body)

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Iterable[str] | None = None,
        purpose: str | None = None,
        patient: str | None = None,
        timeout: float | None = None,
        id: str = "",  # noqa: A002 - the protocol's name
    ) -> InferResult:
        """Ask a model and return its answer once its receipt was verified.

        `inputs` is an array for a model with one input, or a mapping of name to array. `outputs`
        names the wanted ones (default: all). `purpose` is an HL7 v3 PurposeOfUse code (default: the
        role's), `patient` a patient reference, `timeout` is in seconds (default: the model's).

        Raises CallError (DeniedError, InvalidRequestError, UnavailableError) when there is no
        answer, TrustError (MissingReceiptError, WrongReceiptError, ForkError,
        ConsistencyUnavailableError) when there is one that must not be used, NotLoggedInError,
        ValueError or TypeError.
        """
        core = self._core
        named = core.named_inputs(core.known_model(model, version), inputs)
        if named is None:
            named = core.named_inputs(self.model(model, version), inputs)
        assert named is not None  # noqa: S101 - the declaration is known now
        request = core.infer_request(model, version, id, named, outputs)
        try:
            with core.call(purpose, patient) as call:
                reply = self._connection.unary(calls.INFER, request, call.metadata, timeout)
                proof = self._guard.answered(request, reply)
                call.listed.answered(proof)
        except InvalidRequestError:
            core.forget_model(model, version)
            raise
        return core.result(reply, proof)

    def cosigned(self, receipt: bytes, policy: Policy | bytes) -> CosignedReceipt:
        """Return a receipt of the same call against a checkpoint that witnesses have cosigned.

        `receipt` is that of an earlier answer, `policy` a C2SP tlog-policy, which must be
        satisfied. Raises UnavailableError (NOT_COSIGNED, with a time to wait) while there is none,
        TrustError, or ValueError for a policy that is none.
        """
        vkeys = self.profile.vkeys()
        asked = cosignatures.ask(receipt, policy, vkeys)
        body = self._control(cosignatures.METHOD, asked.request, session=True)
        found, proof = cosignatures.read(asked, body, vkeys)
        self._guard.witness(proof)
        return found

    def settle(self) -> None:
        """Prove every checkpoint that still waits for it. Raises ForkError."""
        self._guard.settle()

    def close(self) -> None:
        """Prove what waits, then close the connection. Raises ForkError.

        Where the gateway cannot be asked any more, the next client goes on from the last proof.
        """
        self._renewer.stop()
        try:
            self._guard.settle()
        except ConsistencyUnavailableError as error:
            _LOG.warning("%s", error)
        finally:
            self._connection.close()
            self._core.calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _control(self, method: str, request: bytes, *, session: bool = False) -> bytes:
        metadata = self._core.bearer() if session else ()
        reply = self._connection.unary(method, request, metadata, _CONTROL_SECONDS)
        self._guard.controlled(reply)
        return reply.body


class Renewer:
    """Renews the certificate in the background and swaps the channel. Stops with its owner."""

    def __init__(self, core: Core, renewal: Renewal, connection: Connection) -> None:
        self._core = core
        self._renewal = renewal
        self._connection = connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealward-renewal", daemon=True)

    def start(self) -> None:
        """Begin to watch the clock."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for a renewal that is under way."""
        self._stop.set()
        self._thread.join(_CONTROL_SECONDS)

    def renew(self) -> bool:
        """Take over what is new in the profile, or renew what is due; False when that failed."""
        try:
            material = self._renewal.reload()
            if material is None:
                if not self._renewal.due:
                    return True
                reply = self._connection.unary(
                    renewals.METHOD,
                    self._renewal.request(),
                    self._core.bearer_if_any(),
                    _CONTROL_SECONDS,
                )
                if reply.code is not Code.OK:
                    _LOG.warning("certificate not renewed: %s", reply.code.name)
                    return False
                material = self._renewal.accept(reply.body)
        except ProfileError as error:
            _LOG.warning("certificate not renewed: %s", error)
            return False
        self._connection.swap(open_channel(self._core.profile, material))
        return True

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            if not self.renew():
                self._renewal.failed()
