"""Channels to the gateway, and what a call over one gave. Bytes in, bytes out.

grpcio fixes the certificate of a channel when it is made (grpc/grpc#41779), so a renewed
certificate means a new channel: `Swap` hands out the newest and closes an old one when its last
call has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from sealward.client.profile import Profile
from sealward.kit.channel import OPTIONS
from sealward.kit.reasons import Code
from sealward.kit.tls import Material

C = TypeVar("C")
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """How a unary call ended: its status, the message as received, and the trailing metadata."""

    code: Code
    message: str
    body: bytes
    trailers: Metadata

    @classmethod
    def of_error(cls, error: grpc.RpcError) -> Reply:
        """Take a failed call of either grpcio API apart."""
        code = Code(error.code().value[0])
        return cls(code, error.details() or "", b"", pairs(error.trailing_metadata()))


def pairs(metadata: Any) -> Metadata:
    """Return metadata of either grpcio API as plain pairs."""
    return tuple((key, value) for key, value in metadata or ())


@dataclass(slots=True, eq=False)
class _Held(Generic[C]):
    channel: C
    users: int = 0
    retired: bool = False
    calls: dict[str, Any] = field(default_factory=dict)


class Swap(Generic[C]):
    """The channel in use and those that still have calls. Thread-safe.

    `enter` and `leave` bracket each call; `leave` and `swap` return a channel that nobody uses any
    more and the caller must close.
    """

    def __init__(self, channel: C) -> None:
        self._lock = threading.Lock()
        self._held = _Held(channel)

    def enter(self) -> _Held[C]:
        """Return the newest channel, counted as used."""
        with self._lock:
            self._held.users += 1
            return self._held

    def leave(self, held: _Held[C]) -> C | None:
        """End one use."""
        with self._lock:
            held.users -= 1
            return held.channel if held.retired and not held.users else None

    def swap(self, channel: C) -> C | None:
        """Use another channel from now on."""
        with self._lock:
            old, self._held = self._held, _Held(channel)
            old.retired = True
            return None if old.users else old.channel

    @property
    def channel(self) -> C:
        """The newest channel."""
        return self._held.channel


def open_channel(profile: Profile, material: Material) -> grpc.Channel:
    """Open a channel with the profile's identity (mutual TLS)."""
    return grpc.secure_channel(profile.gateway, _credentials(material), _options(profile))


def open_aio_channel(profile: Profile, material: Material) -> grpc.aio.Channel:
    """Open a channel of grpc.aio with the profile's identity (mutual TLS)."""
    return grpc.aio.secure_channel(profile.gateway, _credentials(material), _options(profile))


class Connection:
    """Makes unary calls over the newest channel; blocks."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._swap = Swap(channel)

    def unary(
        self, method: str, request: bytes, metadata: Metadata = (), timeout: float | None = None
    ) -> Reply:
        """Make one call; a failed one is returned, not raised. `timeout` is in seconds."""
        with self.channel() as held:
            call = held.calls.get(method) or held.calls.setdefault(
                method, held.channel.unary_unary(method)
            )
            try:
                body, rpc = call.with_call(request, timeout=timeout, metadata=metadata)
            except grpc.RpcError as error:
                return Reply.of_error(error)
        return Reply(Code.OK, "", body, pairs(rpc.trailing_metadata()))

    @contextmanager
    def channel(self) -> Iterator[_Held[grpc.Channel]]:
        """Hold the newest channel for the length of a call."""
        held = self.hold()
        try:
            yield held
        finally:
            self.release(held)

    def hold(self) -> _Held[grpc.Channel]:
        """Hold the newest channel until `release`."""
        return self._swap.enter()

    def release(self, held: _Held[grpc.Channel]) -> None:
        """End one use of a channel."""
        unused = self._swap.leave(held)
        if unused is not None:
            unused.close()

    def swap(self, channel: grpc.Channel) -> None:
        """Use another channel from now on; calls that are under way end on the old one."""
        unused = self._swap.swap(channel)
        if unused is not None:
            unused.close()

    def close(self) -> None:
        """Close the channel."""
        self._swap.channel.close()


class AioConnection:
    """Makes unary calls over the newest channel of grpc.aio."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._swap = Swap(channel)

    async def unary(
        self,
        method: str,
        request: bytes,
        metadata: Metadata = (),
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline of the call
    ) -> Reply:
        """Make one call; a failed one is returned, not raised. `timeout` is in seconds."""
        held = self._swap.enter()
        try:
            multi = held.calls.get(method) or held.calls.setdefault(
                method, held.channel.unary_unary(method)
            )
            call = multi(request, timeout=timeout, metadata=metadata)
            try:
                body = await call
            except grpc.aio.AioRpcError as error:
                return Reply.of_error(error)
            return Reply(Code.OK, "", body, pairs(await call.trailing_metadata()))
        finally:
            unused = self._swap.leave(held)
            if unused is not None:
                await unused.close()

    async def swap(self, channel: grpc.aio.Channel) -> None:
        """Use another channel from now on; calls that are under way end on the old one."""
        unused = self._swap.swap(channel)
        if unused is not None:
            await unused.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._swap.channel.close()


def _credentials(material: Material) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(material.bundle_pem, material.key_pem, material.chain_pem)


def _options(profile: Profile) -> Sequence[tuple[str, Any]]:
    return (*OPTIONS, ("grpc.ssl_target_name_override", profile.server_name))
