"""Keys in clear are in the memory of the services and nowhere else.

The test opens the keystore with the unlock secret, or asks Vault as its administrator, so it knows
every key that the suite uses, and looks for all of them in each file, log, metric, record,
environment and in the session store.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.cli.connect import Admin
from sealward.seal.context import EncryptionContext
from tests.support.keystore import OpenedKeystore, VaultKeys, derived, wrapped_keys
from tests.support.searching import Searched, scraped
from tests.support.suites import RunningSuite, running, until
from tests.support.suites import request as question
from tests.support.vault import required_binary

SERVICES = ("keys", "audit", "inference", "gateway")


@pytest.fixture(scope="module", params=["embedded", "vault"])
def quiet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningSuite]:
    """A suite of its own: it is searched when it is down as well."""
    if request.param == "vault":
        required_binary()
    root = tmp_path_factory.mktemp("secrets") / "data"
    with running(root, provider=request.param) as started:
        yield started


def test_no_service_can_be_dumped(quiet: RunningSuite) -> None:
    for name in SERVICES:
        limits = Path(f"/proc/{quiet.pid(name)}/limits").read_text()
        assert limits.partition("Max core file size")[2].split()[:2] == ["0", "0"], name
    for metrics in scraped(quiet):
        assert b"\nsealward_process_dumpable 0.0\n" in metrics


def test_a_key_in_clear_is_found_nowhere(quiet: RunningSuite) -> None:
    used(quiet)
    secrets = keys_of(quiet)
    searched = Searched(secrets.values())

    for record in opened(quiet):
        assert not searched.found_in(record)
    for metrics in scraped(quiet):
        assert not searched.found_in(metrics)
    for name, value in session_store(quiet):
        assert not searched.found_in(name + b"\n" + value)
    for pid in filter(None, map(quiet.pid, (*SERVICES, "valkey"))):
        for kind in ("environ", "cmdline"):
            with suppress(PermissionError):
                assert not searched.found_in(Path(f"/proc/{pid}/{kind}").read_bytes())
    for command in (("keys", "status"), ("status",), ("config", "show"), ("certs", "show")):
        assert not searched.found_in(str(quiet.sealward(*command)).encode())
    for when in ("running", "down"):
        if when == "down":
            quiet.down()
        assert searched.files(quiet.suite.root) == [], when


def test_the_search_finds_what_it_looks_for(quiet: RunningSuite) -> None:
    """Also that these are the keys: each is in the clear form of what was sealed."""
    secrets = keys_of(quiet)
    planted = quiet.suite.root / "planted"
    for name, key in secrets.items():
        searched = Searched([key])
        for content in (
            b"x" + key,
            key[::-1],
            b'{"key": "' + key.hex().upper().encode() + b'"}',
            base64.b64encode(b"xy" + key + b"z"),
            base64.urlsafe_b64encode(key),
            repr([key]).encode(),
        ):
            planted.write_bytes(content)
            assert searched.files(quiet.suite.root) == [Path("planted")], name
    planted.unlink()


def used(suite: RunningSuite) -> None:
    """Everything that takes a key: sessions, predictions, refusals, reading, a restart of each."""
    name = suite.user("ada")
    for row in range(3):
        suite.ask(name, patient=f"patient-{row}")
    suite.ask(name, question("diabetes-progression"))
    wrong = question()
    wrong.model_name = "no-such-model"
    suite.refusal(name, wrong)
    suite.events(user=name)
    # Keys that are opened anew, by services that start beside running ones.
    for service in ("keys", "audit", "inference"):
        suite.restarted(service, suite.kill(service))
        suite.answers_again(name)


def keys_of(suite: RunningSuite) -> dict[str, bytes]:
    """Every key of the suite by what it is."""
    root = suite.suite.root
    known = OpenedKeystore(root) if suite.provider == "embedded" else VaultKeys(suite)
    wrapped = wrapped_keys(root)
    if suite.pid("valkey") is not None:
        shelved = dict(session_store(suite))[b"sess-key:default"]
        wrapped["session"] = (shelved, EncryptionContext("default", "session", "gateway"))
    branches = {name: known.branch_key(*item) for name, item in wrapped.items()}
    found = {**known.keys(), **branches}
    for name, key in branches.items():
        if name.startswith("audit"):
            found |= {f"{name}, derived {n}": part for n, part in enumerate(derived(key))}
    kinds = ("audit segment/", "audit index/", "audit signing/", "inference/models/")
    assert all(any(name.startswith(kind) for name in branches) for kind in kinds), list(branches)
    assert {len(key) for key in found.values()} == {32}
    return found


def session_store(suite: RunningSuite) -> list[tuple[bytes, bytes]]:
    """What the session store holds, by name."""
    # The path of a socket has its limit, and pytest's folders are long.
    folder = os.open(suite.suite.run, os.O_PATH | os.O_CLOEXEC)
    try:
        with redis.Redis(unix_socket_path=f"/proc/self/fd/{folder}/valkey.sock") as client:
            return [
                (name, client.get(name) if client.type(name) == b"string" else client.dump(name))
                for name in client.scan_iter()
            ]
    finally:
        os.close(folder)


def opened(suite: RunningSuite) -> Iterator[bytes]:
    """What the records of the log say."""
    until(lambda: len(suite.events(user="ada", limit=100)) > 4, "events are in the log")
    with Admin(suite.suite).channel("audit") as channel:
        stub = AuditServiceStub(channel)
        for event in suite.events(limit=500):
            wanted = audit_pb2.GetEventRequest(event_id=event.event_id)
            yield stub.GetEvent(wanted, timeout=20).SerializeToString()
