"""`sealward certs rotate --ca`: the certificate authority is replaced while everything runs.

The keys service takes the steps by itself and remembers them; this command begins, shows how far it
is, and passes changed trust bundles on to the administrator and to `clients/` without waiting for
the supervisor's next look. Ended anywhere, it may be run again.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any

from sealward.cli.errors import CliError, Exit, unavailable
from sealward.cli.output import line
from sealward.cli.suite import SERVICES, Suite

if TYPE_CHECKING:
    from sealward.api.keys.v1.authority_pb2 import AuthorityStatus

_POLL_SECONDS = 0.5
_SERVICES_SECONDS = 60.0
_AWAY_SECONDS = 30.0


def rotate_authority(suite: Suite, *, now: bool, wait: bool, quiet: bool) -> dict[str, Any]:
    """Begin to replace the authority, or hurry that; return how far it is. Raise CliError."""
    from sealward.api.keys.v1 import authority_pb2 as pb
    from sealward.api.keys.v1.authority_pb2_grpc import AuthorityServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.renew import renew
    from sealward.cli.rpc import calling

    suite.require_running()
    with calling("replacing the authority"), Admin(suite).channel("keys") as channel:
        status = (
            AuthorityServiceStub(channel)
            .RotateAuthority(pb.RotateAuthorityRequest(now=now), timeout=CALL_SECONDS)
            .status
        )
    _await_bundle(suite, status)
    renew(suite)
    _tell(status, quiet=quiet)
    if wait:
        status = _follow(suite, status, quiet=quiet)
    return describe(status)


def authority_status(suite: Suite) -> AuthorityStatus:
    """Ask how far a replacement is. Raise CliError."""
    from sealward.api.keys.v1 import authority_pb2 as pb
    from sealward.api.keys.v1.authority_pb2_grpc import AuthorityServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("asking keys"), Admin(suite).channel("keys") as channel:
        return (
            AuthorityServiceStub(channel)
            .GetAuthority(pb.GetAuthorityRequest(), timeout=CALL_SECONDS)
            .status
        )


def renew_everything(suite: Suite) -> dict[str, Any]:
    """Renew the certificates of services, administrator and `clients/` now. Raise CliError."""
    from sealward.api.keys.v1 import authority_pb2 as pb
    from sealward.api.keys.v1.authority_pb2_grpc import AuthorityServiceStub
    from sealward.cli.certs import served
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.renew import renew
    from sealward.cli.rpc import calling

    admin = Admin(suite)
    before = {name: served(suite, name, admin.material).serial_number for name in SERVICES}
    with calling("renewing"), admin.channel("keys") as channel:
        AuthorityServiceStub(channel).RenewCertificates(
            pb.RenewCertificatesRequest(), timeout=CALL_SECONDS
        )
    renewed, refused = renew(suite, anew=True)
    deadline = time.monotonic() + _SERVICES_SECONDS
    waiting = set(SERVICES)
    while waiting:
        material = Admin(suite).material
        for name in sorted(waiting):
            try:
                if served(suite, name, material).serial_number != before[name]:
                    waiting.discard(name)
            except OSError:
                # It starts anew just now: then it has a new one.
                continue
        if waiting and time.monotonic() > deadline:
            raise unavailable(
                f"no new certificate of {', '.join(sorted(waiting))} after"
                f" {_SERVICES_SECONDS:.0f} s",
                "sealward certs show; sealward status",
            )
        if waiting:
            time.sleep(_POLL_SECONDS)
    if refused:
        raise CliError(
            f"not renewed: {', '.join(refused)}", advice="sealward user list", renewed=renewed,
            refused=refused,
        )  # fmt: skip
    return {"services": list(SERVICES), "renewed": renewed}


def describe(status: AuthorityStatus) -> dict[str, Any]:
    """Return the state as `--json` prints it."""
    return {
        "under_way": bool(status.since),
        "now": status.now,
        "since": _time(status.since),
        "next_step": _time(status.next_step),
        "authorities": [
            {
                "fingerprint": one.fingerprint.hex(),
                "state": _state(one.state),
                "not_before": _time(one.not_before),
                "not_after": _time(one.not_after),
            }
            for one in status.authorities
        ],
        "services": [
            {
                "identity": one.spiffe_id,
                "has_bundle": one.has_bundle,
                "has_certificate": one.has_certificate,
            }
            for one in status.holders
        ],
    }


def in_words(found: dict[str, Any]) -> str:
    """Return the state as a line for people."""
    if not found["under_way"]:
        return "one authority signs and is trusted; nothing is being replaced"
    states = {one["state"] for one in found["authorities"]}
    step = (
        "the next authority is in the trust bundle and will sign"
        if "next" in states
        else "the new authority signs; the old one leaves the trust bundle"
    )
    return f"{step} from {found['next_step']} on, when every service has followed"


def _follow(suite: Suite, status: AuthorityStatus, *, quiet: bool) -> AuthorityStatus:
    """Wait for the end; whatever changes is passed on at once."""
    from sealward.cli.renew import renew

    lost = time.monotonic()
    while status.since:
        time.sleep(_POLL_SECONDS)
        try:
            found = authority_status(suite)
        except CliError as error:
            # Keys may be starting anew: it goes on where it was.
            if error.code is not Exit.UNAVAILABLE or time.monotonic() > lost + _AWAY_SECONDS:
                raise
            continue
        lost = time.monotonic()
        if _states(found) != _states(status):
            _await_bundle(suite, found)
            renew(suite)
            _tell(found, quiet=quiet)
        status = found
    return status


def _await_bundle(suite: Suite, status: AuthorityStatus) -> None:
    """Wait until the bundle that keys has is where certificates here are renewed with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    wanted = [one.fingerprint for one in status.authorities]
    deadline = time.monotonic() + _AWAY_SECONDS
    while time.monotonic() < deadline:
        try:
            found = x509.load_pem_x509_certificates(suite.bundle_file.read_bytes())
        except (OSError, ValueError):
            found = []
        if [one.fingerprint(hashes.SHA256()) for one in found] == wanted:
            return
        time.sleep(0.02)
    raise unavailable(f"{suite.bundle_file} does not follow", "sealward status")


def _tell(status: AuthorityStatus, *, quiet: bool) -> None:
    found = describe(status)
    line(json.dumps(found) if quiet else f"  {in_words(found)}", err=True)


def _states(status: AuthorityStatus) -> list[tuple[bytes, int]]:
    return [(one.fingerprint, int(one.state)) for one in status.authorities]


def _state(value: int) -> str:
    from sealward.api.keys.v1.authority_pb2 import AuthorityState

    return AuthorityState.Name(value).removeprefix("AUTHORITY_STATE_").lower()  # type: ignore[arg-type]


def _time(seconds: int) -> str | None:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat() if seconds else None
