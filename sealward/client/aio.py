"""The asynchronous client: the same promises as `Client`, on grpc.aio."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sealward.api.gateway.v1.gateway_pb2 import LogoutRequest
from sealward.client import book as pages
from sealward.client import core as calls
from sealward.client import cosigned as cosignatures
from sealward.client import renewal as renewals
from sealward.client.book import Chain
from sealward.client.connection import AioConnection, Reply, open_aio_channel
from sealward.client.core import Core, InferResult, Inputs, ModelInfo, Session
from sealward.client.cosigned import CosignedReceipt
from sealward.client.errors import (
    ConsistencyUnavailableError,
    InvalidRequestError,
    ProfileError,
)
from sealward.client.profile import Profile
from sealward.client.renewal import LOOK_SECONDS, Renewal
from sealward.client.verify import Proof
from sealward.kit.reasons import Code
from sealward.tlog.policy import Policy

_CONTROL_SECONDS = 30.0
_LOG = logging.getLogger("sealward.client")


class AsyncClient:
    """As `Client`, for one event loop.

    Make it inside the loop; use it as an async context manager or await `close`.
    """

    def __init__(self, profile: Profile, *, consistency_interval: float = 0.0) -> None:
        self._core = Core(profile, consistency_interval)
        self._renewal = Renewal(profile)
        self._connection = AioConnection(open_aio_channel(profile, self._renewal.material))
        self._settling = asyncio.Lock()
        self._renewer = asyncio.get_running_loop().create_task(self._renewals())

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

    async def login(self, password: str, new_password: str = "") -> Session:
        """Begin a session; see `Client.login`."""
        request = self._core.login_request(password, new_password)
        return self._core.logged_in(await self._control(calls.LOGIN, request))

    async def login_with_key(
        self, private_jwk: bytes, *, audience: str = "", scope: str = ""
    ) -> Session:
        """Begin the session of a program; see `Client.login_with_key`."""
        request = self._core.token_request(private_jwk, audience, scope)
        return self._core.got_token(await self._control(calls.ISSUE_TOKEN, request))

    async def logout(self) -> None:
        """End the session at the server and forget its token. Raises CallError."""
        await self._control(calls.LOGOUT, LogoutRequest().SerializeToString(), session=True)
        self._core.logged_out()

    async def ready(self) -> bool:
        """Whether the suite can answer predictions now. Raises CallError."""
        from sealward.api.oip.v2.open_inference_pb2 import ServerReadyRequest, ServerReadyResponse

        body = await self._control(calls.SERVER_READY, ServerReadyRequest().SerializeToString())
        return ServerReadyResponse.FromString(body).ready

    async def model(self, name: str, version: str = "") -> ModelInfo:
        """Return what a model declares; asked once and kept. Raises CallError."""
        known = self._core.known_model(name, version)
        if known is not None:
            return known
        request = self._core.metadata_request(name, version)
        body = await self._control(calls.MODEL_METADATA, request, session=True)
        return self._core.learn_model(name, version, body)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Iterable[str] | None = None,
        purpose: str | None = None,
        patient: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline of the call
        id: str = "",  # noqa: A002 - the protocol's name
    ) -> InferResult:
        """Ask a model and return its answer once its receipt was verified; see `Client.infer`."""
        core = self._core
        named = core.named_inputs(core.known_model(model, version), inputs)
        if named is None:
            named = core.named_inputs(await self.model(model, version), inputs)
        assert named is not None  # noqa: S101 - the declaration is known now
        request = core.infer_request(model, version, id, named, outputs)
        try:
            with core.call(purpose, patient) as call:
                reply = await self._connection.unary(calls.INFER, request, call.metadata, timeout)
                if reply.code is not Code.OK:
                    raise await self._refused(request, reply)
                proof = core.answered(request, reply)
                await self._witness(proof)
                call.listed.answered(proof)
        except InvalidRequestError:
            core.forget_model(model, version)
            raise
        return core.result(reply, proof)

    async def cosigned(self, receipt: bytes, policy: Policy | bytes) -> CosignedReceipt:
        """Return a receipt against a checkpoint that witnesses have cosigned; `Client.cosigned`."""
        vkeys = self._core.profile.vkeys()
        asked = cosignatures.ask(receipt, policy, vkeys)
        body = await self._control(cosignatures.METHOD, asked.request, session=True)
        found, proof = cosignatures.read(asked, body, vkeys)
        await self._witness(proof)
        return found

    async def settle(self) -> None:
        """Prove every checkpoint that still waits for it. Raises ForkError."""
        for origin in self._core.book.waiting():
            await self._settle(origin, None)

    async def close(self) -> None:
        """Prove what waits, then close the connection; see `Client.close`. Raises ForkError."""
        self._renewer.cancel()
        await asyncio.wait([self._renewer])
        try:
            await self.settle()
        except ConsistencyUnavailableError as error:
            _LOG.warning("%s", error)
        finally:
            await self._connection.close()
            self._core.calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _control(self, method: str, request: bytes, *, session: bool = False) -> bytes:
        metadata = self._core.bearer() if session else ()
        reply = await self._connection.unary(method, request, metadata, _CONTROL_SECONDS)
        if reply.code is not Code.OK:
            raise await self._refused(None, reply)
        proof = self._core.controlled(reply)
        if proof is not None:
            await self._witness_quietly(proof)
        return reply.body

    async def _refused(self, request: bytes | None, reply: Reply) -> Exception:
        refusal = self._core.refused(request, reply)
        if refusal.proof is not None:
            await self._witness_quietly(refusal.proof)
        return refusal.error

    async def _witness(self, proof: Proof) -> None:
        if self._core.book.observe(proof):
            await self._settle(proof.origin, proof)

    async def _witness_quietly(self, proof: Proof) -> None:
        try:
            await self._witness(proof)
        except ConsistencyUnavailableError:
            return

    async def _settle(self, origin: str, proof: Proof | None) -> None:
        book = self._core.book
        async with self._settling:
            if proof is not None and not book.owes(proof):
                return
            chain = book.chain(origin)
            if chain:
                book.settle(origin, chain, await self._fetch(origin, chain))

    async def _fetch(self, origin: str, chain: Chain) -> list[bytes]:
        proofs: list[bytes] = []
        for request in pages.requests(chain, origin):
            reply = await self._connection.unary(
                pages.METHOD, request, self._core.bearer_if_any(), pages.TIMEOUT_SECONDS
            )
            if reply.code is not Code.OK:
                raise self._core.book.refused(origin, chain, reply)
            proofs += pages.proofs_of(reply.body)
        return proofs

    async def _renewals(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not await self._renew():
                self._renewal.failed()

    async def _renew(self) -> bool:
        try:
            material = self._renewal.reload()
            if material is None:
                if not self._renewal.due:
                    return True
                reply = await self._connection.unary(
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
        await self._connection.swap(open_aio_channel(self._core.profile, material))
        return True
