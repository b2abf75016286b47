"""Which key provider a suite uses: its own keystore, or a Vault server.

A folder keeps the one that it began with. For Vault, `vault.json` says where it is and
`secrets/vault/` holds the login of the keys service. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealward.cli.errors import CliError, unreadable, usage
from sealward.cli.suite import Suite, private_folder, write_private

LOGIN_FILES = (
    "role-id", "secret-id", "wrapped-secret-id", "cert.pem", "key.pem", "ca.pem",
    "shredder-role-id", "shredder-secret-id", "shredder-wrapped-secret-id",
)  # fmt: skip
"""What a folder of credentials may hold, beside `vault.json`."""

_ADVICE = "sealward vault setup makes such a folder"


@dataclass(frozen=True, slots=True)
class VaultChoice:
    """What was asked for on the command line; empty parts stay as they were."""

    addresses: str = ""
    credentials: Path | None = None
    ca_cert: Path | None = None
    namespace: str = ""

    def __bool__(self) -> bool:
        return bool(self.addresses or self.credentials or self.ca_cert or self.namespace)


def uses_vault(suite: Suite, environ: Mapping[str, str]) -> bool:
    """True when the suite's keys are in Vault."""
    asked = environ.get("SEALWARD_KEYS_PROVIDER", "")
    return asked == "vault" if asked else suite.vault_file.exists()


def choose(suite: Suite, choice: VaultChoice, environ: Mapping[str, str]) -> None:
    """Write down where the keys are; raise CliError when that cannot be, or would be a change."""
    if not choice:
        return
    if suite.unlock_file.exists() or (suite.root / "keys" / "keystore").exists():
        raise usage(
            f"the suite in {suite.root} began with its own keystore and cannot move to Vault: what"
            " is sealed there would not open any more",
            "start another folder with --dir",
        )
    found = _read(suite)
    kept = {**found, **_from_credentials(choice.credentials)}
    kept |= {
        name: value
        for name, value in (("addresses", choice.addresses), ("namespace", choice.namespace))
        if value
    }
    if not kept.get("addresses"):
        raise usage("where is Vault?", "sealward up --vault URL")
    _take(suite, choice)
    if not _has_login(suite, environ):
        raise usage(
            "the keys service has no login to Vault",
            f"name its folder with --vault-credentials ({_ADVICE})",
        )
    write_private(suite.vault_file, json.dumps(kept, indent=2).encode() + b"\n")


def vault_environ(suite: Suite) -> dict[str, str]:
    """Return the settings of the keys service, without their prefix; empty without Vault."""
    if not suite.vault_file.exists():
        return {}
    kept = _read(suite)
    ours = {"PROVIDER": "vault", "VAULT_ADDR": str(kept["addresses"])}
    for name in ("namespace", "prefix"):
        if kept.get(name):
            ours[f"VAULT_{name.upper()}"] = str(kept[name])
    login = suite.vault_login
    for name, setting in (
        ("ca.pem", "CACERT"), ("role-id", "ROLE_ID_FILE"), ("cert.pem", "CLIENT_CERT_FILE"),
        ("key.pem", "CLIENT_KEY_FILE"),
    ):  # fmt: skip
        if (login / name).exists():
            ours[f"VAULT_{setting}"] = str(login / name)
    # The shredder's may be brought later, and be good for one act: it is looked for at each use.
    ours["VAULT_SHREDDER_ROLE_ID_FILE"] = str(login / "shredder-role-id")
    for kind in ("", "shredder-"):
        if kind or (login / "role-id").exists():
            # A wrapped one is gone once it was unwrapped; the keys service has what was in it.
            plain = (login / f"{kind}secret-id").exists()
            name = f"{kind}secret-id" if plain else f"{kind}wrapped-secret-id"
            setting = name.upper().replace("-", "_")
            ours[f"VAULT_{setting}_FILE"] = str(login / name)
    return ours


def _read(suite: Suite) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(suite.vault_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError):
        raise CliError(
            f"{suite.vault_file} cannot be read", advice="give --vault and --vault-credentials anew"
        ) from None
    return found


def _from_credentials(folder: Path | None) -> dict[str, Any]:
    """Read prefix and namespace of a folder of credentials."""
    if folder is None:
        return {}
    try:
        found = json.loads((folder / "vault.json").read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(folder / "vault.json", error) from None
    except ValueError:
        raise usage(f"{folder / 'vault.json'} is not JSON") from None
    return {name: str(found[name]) for name in ("prefix", "namespace") if found.get(name)}


def _take(suite: Suite, choice: VaultChoice) -> None:
    """Copy the login, in the place of an older one."""
    login = private_folder(suite.vault_login)
    if choice.credentials is not None:
        content = _content(choice.credentials)
        for name in LOGIN_FILES:
            if name != "ca.pem" or name in content:
                (login / name).unlink(missing_ok=True)
        for name, data in content.items():
            write_private(login / name, data)
    if choice.ca_cert is not None:
        try:
            write_private(login / "ca.pem", choice.ca_cert.read_bytes())
        except OSError as error:
            raise unreadable(choice.ca_cert, error) from None


def take_shredder(suite: Suite, folder: Path) -> None:
    """Bring a login of the shredder from a folder of credentials; raise CliError."""
    if not suite.vault_file.exists():
        raise usage(f"the keys of {suite.root} are not in Vault")
    content = {n: data for n, data in _content(folder).items() if n.startswith("shredder-")}
    if not content.keys() & {"shredder-secret-id", "shredder-wrapped-secret-id"}:
        raise usage(f"{folder} holds no login of the shredder", _ADVICE)
    login = private_folder(suite.vault_login)
    for name, data in sorted(content.items()):
        (login / name).unlink(missing_ok=True)
        write_private(login / name, data)


def _content(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in LOGIN_FILES:
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(folder / name, error, _ADVICE) from None
    if not found.keys() & {"role-id", "cert.pem"}:
        raise usage(f"{folder} holds no login to Vault", _ADVICE)
    return found


def _has_login(suite: Suite, environ: Mapping[str, str]) -> bool:
    own = ("SEALWARD_KEYS_VAULT_ROLE_ID_FILE", "SEALWARD_KEYS_VAULT_CLIENT_CERT_FILE")
    return any(environ.get(name) for name in own) or any(
        (suite.vault_login / name).exists() for name in ("role-id", "cert.pem")
    )
