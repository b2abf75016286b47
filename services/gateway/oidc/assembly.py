"""The parts of a login at a provider, put together from the settings."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from sealward.kit.errors import StartupError
from services.gateway.challenges import Challenges
from services.gateway.oidc.egress import Egress
from services.gateway.oidc.identities import Identities
from services.gateway.oidc.logins import OidcLogins
from services.gateway.oidc.mapping import read_mapping
from services.gateway.oidc.provider import Provider
from services.gateway.settings import GatewaySettings
from services.gateway.users import UserDirectory
from services.gateway.workloads.clients import ClientDirectory


def make_logins(
    settings: GatewaySettings,
    challenges: Challenges,
    identities: Identities,
    users: UserDirectory,
    clients: ClientDirectory,
) -> OidcLogins | None:
    """Return them, or None where no provider is set; raise StartupError for half a setting.

    Nothing is asked of the provider: it may be away when the gateway starts.
    """
    if not settings.oidc_issuer:
        return None
    if settings.oidc_ca_file is None or settings.oidc_roles_file is None:
        raise StartupError("oidc_issuer needs oidc_ca_file and oidc_roles_file beside it")
    if not settings.oidc_client_id:
        raise StartupError("oidc_issuer needs oidc_client_id beside it")
    hosts = [host.strip() for host in settings.oidc_hosts.split(",") if host.strip()]
    egress = Egress([urlsplit(settings.oidc_issuer).netloc, *hosts], settings.oidc_ca_file)
    provider = Provider(
        egress,
        settings.oidc_issuer,
        settings.oidc_client_id,
        _secret(settings.oidc_client_secret_file),
    )
    return OidcLogins(
        provider,
        challenges,
        identities,
        users,
        read_mapping(settings.oidc_roles_file),
        provision=settings.oidc_unknown == "provision",
        name_claim=settings.oidc_name_claim,
        reserved=lambda name: clients.get(name) is not None,
    )


def _secret(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise StartupError("the client's secret (oidc_client_secret_file) cannot be read") from None
