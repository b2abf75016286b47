"""Sessions of a whole suite: open streams, other roles, two gateways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sealward.api.gateway.v1 import access_pb2, gateway_pb2
from sealward.api.gateway.v1.access_pb2_grpc import AccessServiceStub
from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub, UserServiceStub
from sealward.cli.connect import Admin, open_channel, user_channel, user_material
from sealward.cli.errors import CliError
from sealward.cli.rpc import error_info
from tests.support.second_gateway import second_gateway
from tests.support.suites import RunningSuite, request, until

METADATA = "authorization"


class Watched:
    """An open stream of a user; `reason` is why it ended."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._stream: Any = SessionServiceStub(channel).WatchSession(
            gateway_pb2.WatchSessionRequest(), metadata=((METADATA, f"Bearer {token}"),)
        )
        self.first = next(self._stream)
        self.reason = ""
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for _ in self._stream:
                pass
        except grpc.RpcError as error:
            self.reason = error_info(error)[0] or str(error.code().name)
        self.ended.set()

    def why(self) -> str:
        assert self.ended.wait(20), "the stream is still open"
        return self.reason


@pytest.fixture
def open_stream(suite: RunningSuite) -> Iterator[Any]:
    channels = []

    def watch(name: str) -> Watched:
        channel = user_channel(suite.suite, name)
        channels.append(channel)
        return Watched(channel, suite.token(name))

    yield watch
    for channel in channels:
        channel.close()


def test_an_open_stream_ends_with_its_session(suite: RunningSuite, open_stream: Any) -> None:
    name, other = suite.user("sessions-ada"), suite.user("sessions-bob")
    stream, stays = open_stream(name), open_stream(other)
    assert stream.first.session_id
    assert suite.sealward("session", "revoke", "--user", name)["revoked"] == 1
    assert stream.why() == "SESSION_INVALID"
    assert not stays.ended.is_set()
    until(lambda: bool(suite.events(user=name, type="session.cut")), "the cut is recorded")
    suite.login(name)
    stream = open_stream(name)
    suite.sealward("logout", "--user", name)
    assert stream.why() == "SESSION_INVALID"


def test_other_roles_end_sessions_and_streams_at_once(
    suite: RunningSuite, open_stream: Any
) -> None:
    name = suite.user("sessions-cyd")
    stream = open_stream(name)
    done = suite.sealward("user", "set-roles", name, "--role", "operator")
    assert done["revoked"] == 1
    assert stream.why() == "SESSION_INVALID"
    assert suite.refusal(name).details["reason"] == "SESSION_INVALID"
    stale = suite.sealward("user", "set-roles", name, "--role", "service", "--version", "1", code=1)
    assert stale["error"]["reason"] == "USER_CHANGED"


def test_failed_logins_have_to_wait_until_somebody_unlocks(suite: RunningSuite) -> None:
    name = suite.user("sessions-gus")
    reasons = []
    for _ in range(6):
        with pytest.raises(CliError) as caught:
            suite.login_with(name, "not the password at all")
        reasons.append(caught.value.details["reason"])
    assert reasons == ["LOGIN_FAILED"] * 5 + ["RATE_LIMITED"]
    assert suite.sealward("user", "unlock", name)["unlocked"]
    assert suite.login(name)
    assert suite.sealward("user", "list")["locked_sources"] == []


def test_who_is_disabled_has_nothing_left(suite: RunningSuite, open_stream: Any) -> None:
    name = suite.user("sessions-dot")
    stream = open_stream(name)
    with user_channel(suite.suite, name) as channel:
        AccessServiceStub(channel).RequestAccess(
            access_pb2.RequestAccessRequest(model="breast-cancer", purpose="HOPERAT"),
            metadata=((METADATA, f"Bearer {suite.token(name)}"),), timeout=20,
        )  # fmt: skip
    done = suite.sealward("user", "disable", name)
    assert (done["revoked"], done["grants"], done["certificates_pending"]) == (1, 1, False)
    assert done["certificates"] >= 1
    assert stream.why() in ("SESSION_INVALID", "CERTIFICATE_REVOKED", "CANCELLED", "UNAVAILABLE")
    until(
        lambda: suite.refusal(name).details["reason"] == "CERTIFICATE_REVOKED",
        "the certificate is refused",
    )
    # Again is fine, and finds nothing.
    again = suite.sealward("user", "disable", name)
    assert (again["revoked"], again["grants"], again["certificates"]) == (0, 0, 0)


def test_an_end_at_one_gateway_is_an_end_at_every_one(suite: RunningSuite) -> None:
    name, other = suite.user("sessions-eve"), suite.user("sessions-fay")
    with second_gateway(suite) as address:

        def infer_at_the_second(who: str) -> str:
            material = user_material(suite.suite, who)
            with open_channel(material, address, "gateway.sealward.local") as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                metadata = ((METADATA, f"Bearer {suite.token(who)}"),)
                try:
                    call(request().SerializeToString(), metadata=metadata, timeout=20)
                except grpc.RpcError as error:
                    return error_info(error)[0]
            return "answered"

        assert infer_at_the_second(name) == "answered"
        assert infer_at_the_second(other) == "answered"
        with open_channel(
            user_material(suite.suite, name), address, "gateway.sealward.local"
        ) as channel:
            stream = Watched(channel, suite.token(name))
            # Told to the first; the second has the session in its cache, and the stream.
            suite.sealward("session", "revoke", "--user", name)
            assert stream.why() == "SESSION_INVALID"
        until(lambda: infer_at_the_second(name) == "SESSION_INVALID", "the second has heard of it")
        assert infer_at_the_second(other) == "answered"
        # And the other way round, other roles this time.
        with Admin(suite.suite).channel("gateway") as channel:
            users = UserServiceStub(channel).ListUsers(gateway_pb2.ListUsersRequest()).users
        (version,) = [user.version for user in users if user.user == other]
        with open_channel(
            Admin(suite.suite).material, address, "gateway.sealward.local"
        ) as channel:
            UserServiceStub(channel).SetRoles(
                gateway_pb2.SetRolesRequest(user=other, roles=["operator"], version=version),
                timeout=20,
            )
        until(
            lambda: suite.refusal(other).details["reason"] == "SESSION_INVALID",
            "the first has heard of it",
        )
