"""The folder of a suite, its addresses, and the environment of its processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sealward.cli.errors import CliError, Exit
from sealward.cli.processes import service_environ, services_roots, specs, valkey_url
from sealward.cli.suite import SERVICES, Suite, free_ports, port_is_free


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    made = Suite.at(tmp_path / "suite")
    made.create({})
    return made


def test_everything_is_closed_to_others(suite: Suite) -> None:
    for folder, names, files in os.walk(suite.root):
        for name in (*names, *files):
            assert Path(folder, name).stat().st_mode & 0o077 == 0
    assert suite.root.stat().st_mode & 0o777 == 0o700


def test_addresses_are_chosen_once(suite: Suite) -> None:
    first = suite.endpoints_file.read_bytes()
    suite.create({})
    assert suite.endpoints_file.read_bytes() == first
    endpoints = json.loads(first)
    assert set(endpoints) == set(SERVICES)
    places = [endpoints[name][kind] for name in SERVICES for kind in ("address", "metrics")]
    assert len(set(places)) == 8
    assert all(place.startswith("127.0.0.1:") for place in places)
    assert endpoints["audit"]["log"] == "audit/log"
    assert endpoints["audit"]["vkey"] == "audit/log.vkey"


def test_the_operators_own_address_is_followed(tmp_path: Path) -> None:
    suite = Suite.at(tmp_path / "suite")
    environ = {"SEALWARD_GATEWAY_ADDRESS": "127.0.0.1:7443"}
    suite.create(environ)
    assert suite.address("gateway") == "127.0.0.1:7443"
    made = service_environ(suite, "gateway", environ)
    assert made["SEALWARD_GATEWAY_ADDRESS"] == "127.0.0.1:7443"


def test_an_empty_folder_is_closed_and_used(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir(mode=0o755)
    Suite.at(folder).create({})
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CliError) as caught:
        Suite.at(tmp_path).create({})
    assert caught.value.code is Exit.USAGE
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_open_to_others_is_refused(suite: Suite) -> None:
    suite.secrets.chmod(0o755)
    with pytest.raises(CliError, match="open to other accounts") as caught:
        suite.create({})
    assert "chmod 700" in caught.value.advice


def test_damaged_addresses_are_named(suite: Suite) -> None:
    suite.endpoints_file.write_text("{")
    with pytest.raises(CliError, match=r"endpoints\.json cannot be read"):
        suite.endpoints()
    suite.endpoints_file.write_text("{}")
    with pytest.raises(CliError, match="every service"):
        suite.endpoints()


def test_no_suite_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(CliError) as caught:
        Suite.at(tmp_path / "none").require_running()
    assert caught.value.code is Exit.UNAVAILABLE


def test_ports_keep_out_of_the_range_of_outgoing_connections() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert all(port < low for port in ports) or low < 19000


def test_a_taken_port_is_seen() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not port_is_free(listener.getsockname()[1])


def test_a_service_gets_its_own_settings_and_no_others(suite: Suite) -> None:
    environ = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "x",
        "SEALWARD_AUDIT_DRAIN_SECONDS": "3",
        "SEALWARD_GATEWAY_DRAIN_SECONDS": "4",
        "VAULT_ADDR": "https://vault",
    }
    made = service_environ(suite, "gateway", environ)
    assert made["SEALWARD_GATEWAY_DRAIN_SECONDS"] == "4"
    assert made["SEALWARD_GATEWAY_INFERENCE_ADDRESS"] == suite.address("inference")
    assert made["REDIS_URL"] == f"unix://{suite.socket}"
    assert not {"AWS_SECRET_ACCESS_KEY", "SEALWARD_AUDIT_DRAIN_SECONDS", "VAULT_ADDR"} & set(made)
    keys = service_environ(suite, "keys", environ)
    assert keys["VAULT_ADDR"] == "https://vault"
    assert keys["SEALWARD_KEYS_UNLOCK_FILE"] == str(suite.unlock_file)
    assert "SEALWARD_KEYS_KEYS_ADDRESS" not in keys
    audit = service_environ(suite, "audit", environ)
    assert "SEALWARD_AUDIT_AUDIT_ADDRESS" not in audit


def test_a_session_store_of_the_operators_is_used(suite: Suite) -> None:
    assert [spec.name for spec in specs(suite, {})] == ["valkey", *SERVICES]
    environ = {"REDIS_URL": "rediss://:secret@store/0"}
    found = specs(suite, environ)
    assert [spec.name for spec in found] == list(SERVICES)
    assert found[-1].environ["REDIS_URL"] == "rediss://:secret@store/0"
    assert all("REDIS_URL" not in spec.environ for spec in found[:-1])
    assert "secret" not in repr(found)


def test_services_are_recognised_by_their_command_line(suite: Suite) -> None:
    for spec in specs(suite, {})[1:]:
        assert spec.argv[-1] == f"services.{spec.name}"


def test_the_embedded_store_has_no_network_port(suite: Suite) -> None:
    argv = specs(suite, {})[0].argv
    assert argv[argv.index("--port") + 1] == "0"
    assert argv[argv.index("--unixsocketperm") + 1] == "700"


def test_a_long_folder_name_still_has_a_socket(tmp_path: Path) -> None:
    suite = Suite.at(tmp_path / ("x" * 120))
    url = valkey_url(suite)
    assert url == "unix:///proc/self/cwd/run/valkey.sock"


def test_missing_services_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(CliError) as caught:
        services_roots()
    assert "pip install sealward-server" in caught.value.advice
