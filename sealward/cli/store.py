"""Which session store a suite uses: its own Valkey, or a Redis or Valkey server on the network.

A folder keeps what it was told last. `redis.json` says where the server is and where the files are
that open it; they stay where the operator renews them. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sealward.cli.errors import CliError, usage
from sealward.cli.suite import Suite, write_private

FILES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem", "password": "password"}
"""What a folder of credentials may hold; `password` it must."""


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """What was asked for on the command line; empty parts stay as they were."""

    url: str = ""
    credentials: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.url or self.credentials)


def choose_store(suite: Suite, choice: StoreChoice) -> None:
    """Write down where the session store is; raise CliError when that is not whole."""
    if not choice:
        return
    if choice.url == "embedded":
        suite.store_file.unlink(missing_ok=True)
        return
    kept = _read(suite)
    if choice.url:
        parts = urlsplit(choice.url)
        if parts.scheme != "rediss" or not parts.hostname or not parts.username:
            raise usage(
                "--redis is rediss://USER@HOST:PORT, or `embedded`", "there is no plaintext"
            )
        if parts.password is not None:
            raise usage(
                "a password does not belong on a command line",
                "put it into the file `password` of --redis-credentials",
            )
        kept["url"] = choice.url
    if choice.credentials is not None:
        folder = choice.credentials.expanduser().absolute()
        if not (folder / FILES["password"]).is_file():
            raise usage(f"{folder} holds no file `password`", _HOLDS)
        if (folder / FILES["cert"]).is_file() != (folder / FILES["key"]).is_file():
            raise usage(f"{folder} holds one of cert.pem and key.pem alone", _HOLDS)
        kept["credentials"] = str(folder)
    if not kept.get("url") or not kept.get("credentials"):
        raise usage("--redis and --redis-credentials are needed together", _HOLDS)
    write_private(suite.store_file, json.dumps(kept, indent=2).encode() + b"\n")


def has_own_store(suite: Suite, environ: Mapping[str, str]) -> bool:
    """True when the suite runs the embedded Valkey."""
    return not environ.get("REDIS_URL") and not suite.store_file.exists()


def store_environ(suite: Suite) -> dict[str, str]:
    """Return the gateway's settings of a store on the network; empty without one."""
    kept = _read(suite)
    if not kept:
        return {}
    folder = Path(kept["credentials"])
    found = {"REDIS_URL": kept["url"]}
    for kind, name in FILES.items():
        if (folder / name).exists() or kind == "password":
            found[f"SEALWARD_GATEWAY_REDIS_{kind.upper()}_FILE"] = str(folder / name)
    return found


_HOLDS = (
    "such a folder holds `password` and, where Sealward's own are not used, ca.pem, and cert.pem"
    " with key.pem"
)


def _read(suite: Suite) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(suite.store_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError):
        raise CliError(
            f"{suite.store_file} cannot be read",
            advice="give --redis and --redis-credentials anew",
        ) from None
    return found
