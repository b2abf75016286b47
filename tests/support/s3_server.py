"""S3 servers for tests, each a process of its own on loopback.

`moto` comes with the development packages; `versitygw` keeps every object as a file, and is built
where there is Go.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from services.audit.s3_sink import S3Bucket
from tests.support.go_programs import VERSITYGW, go_program

ACCESS, SECRET = "test-access", "test-secret-key"
BUCKET = "audit-log"


@dataclass
class S3Server:
    """One server, which may be stopped and started again."""

    kind: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environ = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
        if self.kind == "moto":
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        else:
            program = shutil.which("versitygw") or str(go_program(VERSITYGW))
            for name in ("objects", "versions"):
                (self.folder / name).mkdir(exist_ok=True)
            command = [program, "--port", f"127.0.0.1:{self.port}", "posix", "--versioning-dir",
                       str(self.folder / "versions"), str(self.folder / "objects")]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def bucket(self, **options: object) -> S3Bucket:
        return S3Bucket(self.endpoint, BUCKET, ACCESS, SECRET, **options)

    def make_bucket(self) -> S3Bucket:
        bucket = self.bucket()
        bucket.client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        return bucket

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()  # noqa: S310
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


def s3_server(kind: str, folder: Path) -> S3Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return S3Server(kind, folder, probe.getsockname()[1])


def download(bucket: S3Bucket, prefix: str, folder: Path) -> Path:
    """Copy what is published below a prefix into a folder, as any S3 tool does."""
    pages = bucket.client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket.name, Prefix=f"{prefix}/"):
        for found in page.get("Contents", ()):
            target = folder / found["Key"].removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(
                bucket.client.get_object(Bucket=bucket.name, Key=found["Key"])["Body"].read()
            )
    return folder
