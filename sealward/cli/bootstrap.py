"""What a new suite gets once: its unlock secret and its first administrator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealward.cli.errors import CliError
from sealward.cli.suite import Suite, write_private

if TYPE_CHECKING:
    from sealward.kit.tls import Material

FIRST_ADMIN = "admin"


def make_unlock_secret(suite: Suite) -> None:
    """Make the secret that opens the keystore (an age X25519 identity), once."""
    if suite.unlock_file.exists():
        return
    if any((suite.root / "keys").iterdir()):
        raise CliError(
            f"{suite.unlock_file} is missing: {suite.root / 'keys'} cannot be opened without it",
            advice="restore the file from its backup",
        )
    from pyrage import x25519

    write_private(suite.unlock_file, f"{x25519.Identity.generate()}\n".encode())


def first_admin(suite: Suite, material: Material) -> str:
    """Create the first administrator of a new suite; return the one-time password, else ''."""
    if suite.admin_password_file.exists() or (suite.clients / FIRST_ADMIN).exists():
        return ""
    import secrets

    import grpc

    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.certificates import ENROLL_SECONDS, issue_client
    from sealward.cli.connect import Admin
    from sealward.cli.rpc import calling, error_info

    stub = UserServiceStub(Admin(suite, material).channel("gateway"))
    password = secrets.token_urlsafe(15)
    with calling("making the first administrator"):
        try:
            stub.CreateUser(
                gw.CreateUserRequest(
                    user=FIRST_ADMIN, roles=["security-admin"], password=password, one_time=True
                ),
                timeout=ENROLL_SECONDS,
            )
        except grpc.RpcError as error:
            if error_info(error)[0] != "ALREADY_EXISTS":
                raise
            return ""
        write_private(suite.admin_password_file, password.encode() + b"\n")
        issue_client(suite, stub, FIRST_ADMIN)
    return password
