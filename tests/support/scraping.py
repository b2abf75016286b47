"""Reads the metrics of a running service over TLS, as Prometheus does."""

from __future__ import annotations

import socket
import ssl

from prometheus_client.parser import text_string_to_metric_families

from sealward.kit.settings import split_address
from sealward.kit.tls import Credentials, Material


def scrape(address: str, material: Material) -> bytes:
    """Return what /metrics of a service answers to who has this certificate."""
    context = Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    with (
        socket.create_connection(split_address(address), timeout=10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: secure.recv(65536), b""))


def samples(answer: bytes) -> dict[str, float]:
    """Return value by sample name; of one with labels the sum over them."""
    found: dict[str, float] = {}
    text = answer.partition(b"\r\n\r\n")[2].decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
