"""Tries a listener in right and wrong ways: raw sockets, so that nothing mends what is wrong."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import warnings
from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealward.kit.settings import split_address
from sealward.kit.tls import Credentials, Material, key_to_pem, load_material

SECONDS = 5.0
# Bytes that tell what answers: a frame's head; +PONG is shorter.
_ENOUGH = {"store": 5}
_USUAL = 9
# The start of HTTP/2 (RFC 9113 section 3.4) with an empty SETTINGS frame; what comes back begins
# with a frame of the server's own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_PING = b"PING\r\n"
_GET = b"GET /metrics HTTP/1.0\r\n\r\n"
_SETTINGS = 4
_VERSIONS = {
    "TLS 1.0": ssl.TLSVersion.TLSv1,
    "TLS 1.1": ssl.TLSVersion.TLSv1_1,
    "TLS 1.2": ssl.TLSVersion.TLSv1_2,
}


def dial(address: str, kind: str, how: str, material: Material) -> bool:
    """Return whether an answer came; `material` is the administrator's.

    Raise OSError when nobody listens, ValueError for a way that is none.
    """
    enough = _ENOUGH.get(kind, _USUAL)
    said = {"metrics": _GET, "store": _PING}.get(kind, _PREFACE)
    if how == "plaintext":
        return _answered(_plain(address, said, enough), kind)
    context = _context(how, material)
    if kind == "address":
        context.set_alpn_protocols(["h2"])
    return _answered(_secure(address, said, context, enough, altered=how == "altered"), kind)


def _answered(data: bytes, kind: str) -> bool:
    if kind == "metrics":
        return data.startswith(b"HTTP/")
    if kind == "store":
        # A refusal in words is an answer: it was spoken to.
        return data.startswith((b"+", b"-"))
    return len(data) >= _USUAL and data[3] == _SETTINGS


def _context(how: str, material: Material) -> ssl.SSLContext:
    if how in ("right", "altered"):
        context = Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = False
        return context
    if how == "another authority":
        foreign = _foreign(material)
        context = Credentials(foreign).ssl_context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = False
        return context
    if how == "no certificate":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    elif how in _VERSIONS:
        # The right certificate: nothing but the version is wrong.
        context = Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)
        with warnings.catch_warnings(), suppress(ssl.SSLError):
            # That they are old is why they are offered.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = _VERSIONS[how]
            context.set_ciphers("ALL:@SECLEVEL=0")
    else:
        raise ValueError(how)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _plain(address: str, said: bytes, enough: int) -> bytes:
    connection = socket.create_connection(split_address(address), timeout=SECONDS)
    with connection, suppress(OSError):
        connection.sendall(said)
        return _read(connection, enough)
    return b""


def _read(connection: socket.socket, enough: int) -> bytes:
    data = b""
    while len(data) < enough:
        more = connection.recv(4096)
        if not more:
            break
        data += more
    return data


def _secure(
    address: str, said: bytes, context: ssl.SSLContext, enough: int, *, altered: bool
) -> bytes:
    """Make a handshake by hand, so that what comes in can be altered; return what was decrypted."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="listener")
    with socket.create_connection(split_address(address), timeout=SECONDS) as connection:
        spoil = False
        try:
            while True:
                try:
                    session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    _exchange(connection, incoming, outgoing, spoil=False)
            session.write(said)
            data = b""
            spoil = altered
            while len(data) < enough:
                try:
                    more = session.read(4096)
                except ssl.SSLWantReadError:
                    _exchange(connection, incoming, outgoing, spoil=spoil)
                    continue
                if not more:
                    break
                data += more
        except (ssl.SSLError, OSError, EOFError):
            return b""
        return data


def _exchange(
    connection: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, spoil: bool
) -> None:
    if outgoing.pending:
        connection.sendall(outgoing.read())
    data = connection.recv(65536)
    if not data:
        raise EOFError
    if spoil and len(data) > 9:
        # Behind the five bytes of the first record's header.
        data = data[:8] + bytes([data[8] ^ 1]) + data[9:]
    incoming.write(data)


def _foreign(material: Material) -> Material:
    """Return a certificate with the administrator's name from an authority that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    ours = x509.load_pem_x509_certificate(material.chain_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sealward")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(minutes=10))
        .add_extension(
            ours.extensions.get_extension_for_class(x509.SubjectAlternativeName).value,
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    chain = made.public_bytes(serialization.Encoding.PEM)
    return load_material(key_to_pem(key), chain, material.bundle_pem)


def get_metrics(address: str, material: Material) -> bytes:
    """Return what a metrics listener answers, headers included; raise OSError."""
    context = Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    with (
        socket.create_connection(split_address(address), timeout=SECONDS) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(_GET)
        return b"".join(iter(lambda: secure.recv(65536), b""))
