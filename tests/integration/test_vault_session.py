"""The session with a real Vault: logins, renewal, revocation, several addresses, what goes out."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.keys.providers.base import Condition
from services.keys.providers.vault.config import AppRole, VaultConfig
from services.keys.providers.vault.login import ROLE, unwrap
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.setup import Administrator
from services.keys.providers.vault.shredder import Shredder
from services.keys.providers.vault.transit import VaultBranchKeys
from tests.support.vault import VaultServer, shared
from tests.support.vault_provider import Opened, opened, plan_of, set_up, target_of
from tests.support.vault_proxy import proxy_to
from tests.support.waiting import free_port, until

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)

SESSION = EncryptionContext("default", "session", "epoch-1")


@pytest.fixture(scope="module")
def server() -> VaultServer:
    return shared()


@contextmanager
def started(
    folder: Path, server: VaultServer, config: VaultConfig | None = None
) -> Iterator[tuple[Opened, list[Condition]]]:
    told: list[Condition] = []
    with opened(folder, server, config) as found:
        found.session.start(told.append)
        yield found, told


def refused(call: Callable[[], object]) -> SealwardError:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value


def role(server: VaultServer, config: VaultConfig, **options: object) -> None:
    """Change the keys service's role, as an administrator may."""
    server.ask("post", f"{config.names.approle}/role/{ROLE}", options)


def accessor_of(server: VaultServer, found: Opened) -> str:
    token = found.session._token
    assert token is not None
    answer = server.ask("post", "auth/token/lookup", {"token": token.value.reveal().decode()})
    return str(answer["data"]["accessor"])


# --- logins ---------------------------------------------------------------------------------------


def test_a_wrapped_secret_id_is_taken_once_and_kept(server: VaultServer, tmp_path: Path) -> None:
    config = set_up(tmp_path, server)
    assert isinstance(config.login, AppRole)
    wrapped, kept = config.login.wrapped_file, config.login.kept_file
    assert wrapped is not None
    assert kept is not None
    copy = tmp_path / "copy"
    shutil.copy(wrapped, copy)
    with opened(tmp_path, server, config) as found:
        found.branches.create(SESSION)
    assert not wrapped.exists()
    assert kept.stat().st_mode & 0o077 == 0
    # The next start logs in with what was kept; the same file there again changes nothing.
    shutil.copy(copy, wrapped)
    with opened(tmp_path, server, config) as found:
        assert found.branches.create(SESSION)
    # Somebody else comes too late.
    late = replace(config.login, kept_file=tmp_path / "elsewhere" / "secret-id", wrapped_file=copy)
    with pytest.raises(StartupError, match="somebody else holds it"):
        unwrap(found.session.wire, config, late, ROLE)


def test_a_wrapping_of_something_else_is_not_taken(server: VaultServer, tmp_path: Path) -> None:
    config = set_up(tmp_path, server)
    assert isinstance(config.login, AppRole)
    assert config.login.wrapped_file is not None
    _, answer = server.status(
        "post", "sys/wrapping/wrap", {"secret_id": "forged"}, headers={"X-Vault-Wrap-TTL": "60s"}
    )
    write_private(config.login.wrapped_file, answer["wrap_info"]["token"].encode())
    with (
        pytest.raises(StartupError, match="was not made for this service"),
        opened(tmp_path, server, config),
    ):
        pass


def test_a_secret_id_for_one_use_is_good_for_one_login(server: VaultServer, tmp_path: Path) -> None:
    config = set_up(tmp_path, server, plan_of(server, uses=1))
    with opened(tmp_path, server, config) as found:
        found.branches.create(SESSION)
    with pytest.raises(StartupError, match="refuses the login"), opened(tmp_path, server, config):
        pass


def test_a_login_that_cannot_be_says_why(server: VaultServer, tmp_path: Path) -> None:
    config = set_up(tmp_path, server)
    assert isinstance(config.login, AppRole)
    plain = tmp_path / "secret-id"
    other = replace(config, login=AppRole(config.login.role_id_file, plain))
    cases = ((None, "does not exist"), ("wrong", "refuses the login"), ("two words", "one word"))
    for text, said in cases:
        if text is not None:
            write_private(plain, text.encode())
        with pytest.raises(StartupError, match=said), opened(tmp_path, server, other):
            pass
    plain.chmod(0o644)
    with pytest.raises(StartupError, match="open to others"), opened(tmp_path, server, other):
        pass


def test_a_root_token_is_not_served_with(server: VaultServer, tmp_path: Path) -> None:
    """This Vault makes none at a login; whatever answered as if it did is not believed."""
    config = set_up(tmp_path, server)
    with proxy_to(server.address) as proxy:
        config = with_addresses(config, proxy.address)
        with opened(tmp_path, server, config) as found:
            auth = {"client_token": "hvs.x", "policies": ["root"], "lease_duration": 0}
            proxy.answer = (200, {}, json.dumps({"auth": auth}).encode())
            with pytest.raises(StartupError, match="refuses the login"):
                found.session.open()


# --- the token's life -----------------------------------------------------------------------------


def test_a_token_is_renewed_past_its_life(server: VaultServer, tmp_path: Path) -> None:
    config = set_up(tmp_path, server)
    role(server, config, token_ttl="2s", token_max_ttl="600s")
    with started(tmp_path, server, config) as (found, told):
        key, wrapped = found.branches.create(SESSION)
        until(lambda: found.session.renewals >= 3, "it is renewed")
        assert found.branches.open(SESSION, wrapped) == key
        assert (found.session.logins, told) == (1, [])


def test_at_the_end_of_its_longest_life_it_logs_in_anew(
    server: VaultServer, tmp_path: Path
) -> None:
    """No call fails meanwhile, and the old token is given back."""
    config = set_up(tmp_path, server)
    role(server, config, token_ttl="2s", token_max_ttl="3s")
    with started(tmp_path, server, config) as (found, told):
        key, wrapped = found.branches.create(SESSION)

        def logged_in_twice() -> bool:
            assert found.branches.open(SESSION, wrapped) == key
            return found.session.logins >= 3

        until(logged_in_twice, "it logs in again")
        assert told == []


def test_a_revoked_token_costs_one_login_and_no_call(server: VaultServer, tmp_path: Path) -> None:
    with started(tmp_path, server) as (found, told):
        key, wrapped = found.branches.create(SESSION)
        server.ask("post", "auth/token/revoke-accessor", {"accessor": accessor_of(server, found)})
        results: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: results.append(found.branches.open(SESSION, wrapped)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [key] * 8
        assert (found.session.logins, told) == (2, [])


def test_a_login_that_was_withdrawn_is_told_and_a_new_one_is_taken(
    server: VaultServer, tmp_path: Path
) -> None:
    config = set_up(tmp_path, server)
    assert isinstance(config.login, AppRole)
    kept = config.login.kept_file
    assert kept is not None
    with started(tmp_path, server, config) as (found, told):
        _, wrapped = found.branches.create(SESSION)
        secret = kept.read_text().strip()
        path = f"{config.names.approle}/role/{ROLE}/secret-id"
        server.ask("post", f"{path}/destroy", {"secret_id": secret})
        server.ask("post", "auth/token/revoke-accessor", {"accessor": accessor_of(server, found)})
        error = refused(lambda: found.branches.open(SESSION, wrapped))
        assert error.reason is Reason.KEYSTORE_UNAVAILABLE
        assert "refuses the login" in error.message
        assert error.retry_after
        assert found.session.condition().trouble == "vault-login-refused"
        # It comes back by itself when there is a new secret id.
        write_private(kept, server.ask("post", path, {})["data"]["secret_id"].encode())
        until(lambda: found.session.condition().state == "ready", "it logs in")
        found.branches.open(SESSION, wrapped)
        assert [c.state for c in told] == ["degraded", "ready"]


def test_what_the_policy_forbids_is_said_and_is_no_reason_to_log_in(
    server: VaultServer, tmp_path: Path
) -> None:
    config = set_up(tmp_path, server)
    with started(tmp_path, server, config) as (found, told):
        _, wrapped = found.branches.create(SESSION)
        server.ask("put", f"sys/policies/acl/{config.names.policy('keys')}", {"policy": (
            f'path "{config.names.transit}/keys/+" {{ capabilities = ["read"] }}\n'
            'path "auth/token/lookup-self" { capabilities = ["read"] }'
        )})  # fmt: skip
        for _ in range(3):
            error = refused(lambda: found.branches.open(SESSION, wrapped))
            assert error.reason is Reason.KEYSTORE_UNAVAILABLE
            assert "policy" in error.message
        assert found.branches.versions("default", "session").newest == 1
        assert (found.session.logins, told) == (1, [])


def test_the_token_is_given_back_at_the_end_and_told_to_nobody(
    server: VaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with started(tmp_path, server) as (found, _):
        token = found.session._token
        assert token is not None
        key, wrapped = found.branches.create(SESSION)
        shown = repr([found.session, token, found.session.config, found.session.wire, vars(found)])
        assert (
            server.status("get", "auth/token/lookup-self", token=token.value.reveal().decode())[0]
            == 200
        )
    assert (
        server.status("get", "auth/token/lookup-self", token=token.value.reveal().decode())[0]
        == 403
    )
    text = caplog.text + shown
    for secret in (token.value.reveal().decode(), key.hex(), wrapped.decode()):
        assert secret not in text
    assert refused(lambda: found.branches.create(SESSION)).reason is Reason.KEYSTORE_UNAVAILABLE


# --- addresses and what goes out ------------------------------------------------------------------


def with_addresses(config: VaultConfig, *addresses: str) -> VaultConfig:
    return replace(config, target=replace(config.target, addresses=addresses))


def test_the_next_address_answers_for_one_that_does_not(
    server: VaultServer, tmp_path: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    config = with_addresses(set_up(tmp_path, server), dead, server.address)
    with started(tmp_path, server, config) as (found, told):
        found.branches.create(SESSION)
        assert found.session.wire.address == server.address
        assert told == []


def test_a_hanging_address_is_left_for_the_next(server: VaultServer, tmp_path: Path) -> None:
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address, server.address)
        with started(tmp_path, server, config) as (found, told):
            key, wrapped = found.branches.create(SESSION)
            proxy.hold.clear()
            assert found.branches.open(SESSION, wrapped) == key
            assert found.session.wire.address == server.address
            assert told == []


def test_a_redirect_takes_the_token_nowhere(server: VaultServer, tmp_path: Path) -> None:
    with proxy_to(server.address) as proxy, proxy_to(server.address) as elsewhere:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with started(tmp_path, server, config) as (found, _):
            found.branches.create(SESSION)
            proxy.answer = (307, {"Location": f"{elsewhere.address}/v1/x"}, b"")
            assert "no active node" in refused(lambda: found.branches.create(SESSION)).message
            assert found.session.condition().trouble == "vault-standby"
            assert elsewhere.seen == []
            proxy.answer = None
            until(lambda: found.session.condition().state == "ready", "it recovers")


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [
        (502, b"<html>bad gateway</html>", "vault-failing"),
        (200, b"<html>log in to the network</html>", "vault-failing"),
        (503, b'{"errors": ["Vault is sealed"]}', "vault-sealed"),
        (500, b'{"errors": ["local node not active but active cluster node not found"]}',
         "vault-standby"),
        (500, b'{"errors": ["1 error occurred"]}', "vault-failing"),
    ],
)  # fmt: skip
def test_troubles_are_told_apart_and_left_behind(
    server: VaultServer, tmp_path: Path, status: int, body: bytes, trouble: str
) -> None:
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with started(tmp_path, server, config) as (found, told):
            key, wrapped = found.branches.create(SESSION)
            proxy.answer = (status, {"Content-Type": "application/json"}, body)
            error = refused(lambda: found.branches.open(SESSION, wrapped))
            assert error.reason is Reason.KEYSTORE_UNAVAILABLE
            assert found.session.condition().trouble == trouble
            proxy.answer = None
            until(lambda: found.session.condition().state == "ready", "it recovers")
            assert found.branches.open(SESSION, wrapped) == key
            assert (told[0].trouble, told[-1].state) == (trouble, "ready")


def test_a_limit_of_calls_is_no_trouble(server: VaultServer, tmp_path: Path) -> None:
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with started(tmp_path, server, config) as (found, told):
            found.branches.create(SESSION)
            before = len(proxy.seen)
            proxy.answer = (429, {"Retry-After": "1"}, b'{"errors": ["rate limit quota exceeded"]}')
            assert refused(lambda: found.branches.create(SESSION)).retry_after
            proxy.answer = None
            found.branches.create(SESSION)
            calls = [path for path, _ in proxy.seen[before:] if "datakey" in path]
            assert len(calls) == 2
            assert told == []


def test_a_refusal_is_sent_once(server: VaultServer, tmp_path: Path) -> None:
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with started(tmp_path, server, config) as (found, _):
            _, wrapped = found.branches.create(SESSION)
            proxy.seen.clear()
            error = refused(lambda: found.branches.open(SESSION.about("epoch-2"), wrapped))
            assert error.reason is Reason.SEAL_BROKEN
            assert len([path for path, _ in proxy.seen if "decrypt" in path]) == 1


def test_the_namespace_goes_out_with_every_call_but_health(
    server: VaultServer, tmp_path: Path
) -> None:
    with proxy_to(server.address) as proxy:
        config = set_up(tmp_path, server)
        target = replace(config.target, addresses=(proxy.address,), namespace="team/clinic")
        with started(tmp_path, server, replace(config, target=target)) as (found, _):
            found.branches.create(SESSION)
            until(lambda: any("health" in path for path, _ in proxy.seen), "health is asked")
        for path, headers in proxy.seen:
            expected = None if "sys/health" in path else "team/clinic"
            assert headers.get("X-Vault-Namespace") == expected, path
        assert {path.split("/")[2] for path, _ in proxy.seen} >= {"auth", "sys"}


def test_the_environment_changes_nothing(
    server: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "VAULT_ADDR"):
        monkeypatch.setenv(name, dead)
    monkeypatch.setenv("VAULT_TOKEN", "another")
    monkeypatch.setenv("VAULT_NAMESPACE", "another")
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with opened(tmp_path, server, config) as found:
            found.branches.create(SESSION)
        for _, headers in proxy.seen:
            assert headers.get("X-Vault-Token") != "another"
            assert "X-Vault-Namespace" not in headers


def test_a_vault_that_hangs_holds_few_threads_and_then_none(
    server: VaultServer, tmp_path: Path
) -> None:
    """Some wait for an answer, some for their turn, and the rest are refused at once."""
    with proxy_to(server.address) as proxy:
        config = set_up(tmp_path, server)
        target = replace(config.target, addresses=(proxy.address,), calls=4, timeout=1.0)
        with started(tmp_path, server, replace(config, target=target)) as (found, _):
            _, wrapped = found.branches.create(SESSION)
            proxy.hold.clear()
            errors: list[SealwardError] = []
            threads = [
                threading.Thread(
                    target=lambda: errors.append(
                        refused(lambda: found.branches.open(SESSION, wrapped))
                    )
                )
                for _ in range(40)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(errors) == 40
            assert all(e.reason is Reason.KEYSTORE_UNAVAILABLE and e.retry_after for e in errors)
            assert len([path for path, _ in proxy.seen if "decrypt" in path]) == 4
            assert found.session.condition().trouble == "vault-slow"
            # Now nobody waits any more.
            seen = len([path for path, _ in proxy.seen if "decrypt" in path])
            for _ in range(20):
                refused(lambda: found.branches.open(SESSION, wrapped))
            assert len([path for path, _ in proxy.seen if "decrypt" in path]) == seen
            proxy.hold.set()
            until(lambda: found.session.condition().state == "ready", "it recovers")
            found.branches.open(SESSION, wrapped)


def test_degraded_ends_with_the_longest_lease(server: VaultServer, tmp_path: Path) -> None:
    now = [0.0]
    with proxy_to(server.address) as proxy:
        config = with_addresses(set_up(tmp_path, server), proxy.address)
        with opened(tmp_path, server, config):
            session = VaultSession(config, 900.0, clock=lambda: now[0])
            session.open()
        branches = VaultBranchKeys(session, Shredder(session.wire, config))
        branches.create(SESSION)
        proxy.answer = (503, {}, b'{"errors": ["Vault is sealed"]}')
        now[0] = 100.0
        refused(lambda: branches.create(SESSION))
        for moment, state in ((100.0, "degraded"), (899.0, "degraded"), (900.0, "sealed")):
            now[0] = moment
            assert session.condition().state == state
            assert session.condition().trouble == "vault-sealed"
        session.close()


def test_an_administrator_is_told_what_their_token_lacks(server: VaultServer) -> None:
    from services.keys.providers.vault.setup import SetupError

    token = server.ask("post", "auth/token/create", {"policies": ["default"], "ttl": "60s"})
    admin = Administrator(target_of(server), token["auth"]["client_token"])
    with pytest.raises(SetupError, match="sealward vault policies"):
        admin.set_up(plan_of(server))
    admin.close()
