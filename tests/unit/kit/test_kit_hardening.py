"""A hardened process leaves no core file, and says so in its metrics."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sealward.kit.tls import key_to_pem, new_key
from tests.conftest import CertificateAuthority

PROGRAM = """
import os, resource
from prometheus_client import CollectorRegistry, generate_latest
from sealward.kit.hardening import dumpable, harden
from sealward.kit.metrics import process_metrics

registry = CollectorRegistry()
process_metrics(registry, "keys", "1")

def said():
    lines = generate_latest(registry).decode().splitlines()
    return next(line for line in lines if line.startswith("sealward_process_dumpable"))

resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(dumpable(), said())
harden()
print(dumpable(), said(), resource.getrlimit(resource.RLIMIT_CORE), os.umask(0))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print(dumpable())
import ctypes
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
print(dumpable())
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print(open("/proc/self/limits").read().partition("Max core file size")[2].split()[:2], flush=True)
os.abort()
"""


def test_a_hardened_process_is_not_dumped(tmp_path: object) -> None:
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=writer, stderr=writer, cwd=str(tmp_path)
    )
    os.close(writer)
    _, status = os.waitpid(child.pid, 0)
    child.returncode = 0
    with os.fdopen(reader) as said:
        lines = said.read().splitlines()
    if "not allowed to raise" in lines[-1]:
        pytest.skip("this account may not raise its core limit: nothing to take away")
    assert lines == [
        "True sealward_process_dumpable 1.0",
        "False sealward_process_dumpable 0.0 (0, 0) 63",
        "False",
        "True",
        "['0', '0']",
    ]
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)


def test_no_repr_shows_a_private_key(authority: CertificateAuthority) -> None:
    material = authority.issue("spiffe://test/service/keys")
    assert "PRIVATE" not in repr(material)
    assert b"PRIVATE" in material.key_pem
    assert "PRIVATE" not in repr(new_key())
    assert b"PRIVATE" in key_to_pem(new_key())
