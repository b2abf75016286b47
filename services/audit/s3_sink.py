"""A log published to an S3-compatible object store.

Tiles are written by a few threads at a time and are all there before the checkpoint. Full tiles
never change: each is put only where none is yet, with headers for caches and, if the settings say
so, under Object Lock. The checkpoint is replaced only when it is still the one that was last seen,
so that a service that was taken over cannot put an old one in its place.
"""

from __future__ import annotations

import base64
import datetime as dt
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sealward.tlog.errors import TileError
from sealward.tlog.tiles import CHECKPOINT_PATH, COSIGNED_PATH, TILE_WIDTH, Tile, parse_path
from services.audit.tilesink import SinkMovedError, SinkUnavailableError

_THREADS = 4
# Tiles that wait for a thread; past it `write` waits.
_WAITING = 16
_SECONDS = 5
_IMMUTABLE = "max-age=31536000, immutable"
_CHANGING = {"CacheControl": "no-store", "ContentType": "text/plain; charset=utf-8"}

# What botocore raises beside its own errors on answers that are no S3 store's: what its parsers do
# not understand, parts that are missing, a redirection that leads nowhere but back.
_FOREIGN = (BotoCoreError, ResponseParserError, OSError, KeyError, ValueError, RecursionError)

LockMode = Literal["GOVERNANCE", "COMPLIANCE"]


class S3Bucket:
    """One bucket and the connections to it. Thread-safe."""

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        *,
        region: str = "us-east-1",
        ca_file: str | None = None,
        retention_days: int = 0,
        lock_mode: LockMode = "COMPLIANCE",
    ) -> None:
        """Keep full tiles locked for `retention_days`, 0 for not; nothing is connected yet."""
        self.name = bucket
        self.client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=ca_file or True,
            config=Config(
                connect_timeout=_SECONDS,
                read_timeout=_SECONDS,
                max_pool_connections=_THREADS + 2,
                retries={"mode": "standard", "total_max_attempts": 2},
                # Other stores than Amazon's do not know the newer checksums; MD5 goes with each.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tiles")
        self._retention = dt.timedelta(days=retention_days)
        self._lock_mode = lock_mode

    def lock(self) -> dict[str, Any]:
        """Return the parameters that lock an object; none when the settings ask for none."""
        if not self._retention:
            return {}
        until = dt.datetime.now(dt.UTC) + self._retention
        return {"ObjectLockMode": self._lock_mode, "ObjectLockRetainUntilDate": until}

    def close(self) -> None:
        """End the threads and the connections."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.client.close()


class S3Sink:
    """A TileSink below a prefix of a bucket. See tilesink.py for the contract of each method."""

    def __init__(self, bucket: S3Bucket, prefix: str) -> None:
        """Publish below `prefix`, which ends in no slash."""
        self._bucket = bucket
        self._prefix = f"{prefix}/"
        self._slots = threading.Semaphore(_WAITING)
        self._waiting: list[Future[None]] = []
        self._stock: dict[str, str] = {}
        self._forms: dict[Tile, set[int]] = {}
        self._checkpoint_tag: str | None = None
        self._attempted: bytes | None = None

    def __str__(self) -> str:
        return f"s3://{self._bucket.name}/{self._prefix}"

    def begin(self) -> None:
        """See TileSink: one listing tells what is there, a thousand objects a request."""
        self.flush()
        self._stock.clear()
        self._forms.clear()
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._prefix, **more)
            try:
                for found in page.get("Contents", ()):
                    path = found["Key"].removeprefix(self._prefix)
                    self._stock[path] = found["ETag"]
                    self._note(path)
                if not page.get("IsTruncated"):
                    return
                more = {"ContinuationToken": page["NextContinuationToken"]}
            except KeyError:
                raise SinkUnavailableError from None

    def read(self, path: str) -> bytes | None:
        """See TileSink."""
        found = self._get(path)
        if path == CHECKPOINT_PATH:
            self._checkpoint_tag = found[1] if found else None
        return found[0] if found else None

    def holds(self, path: str, data: bytes) -> bool:
        """See TileSink.

        An entity tag that is the content's MD5 says yes without a download. It is here to find
        what a crash left out; who reads the log relies on its hashes and not on this.
        """
        tag = self._stock.pop(path, None)
        if tag is None:
            return False
        return tag == _tag(data) or self.read(path) == data

    def write(self, path: str, data: bytes) -> None:
        """See TileSink."""
        if path == CHECKPOINT_PATH:
            self._write_checkpoint(data)
            return
        if path == COSIGNED_PATH:
            self._put(path, data, **_CHANGING)
            return
        self._note(path)
        self._later(lambda: self._write_tile(path, data))

    def flush(self) -> None:
        """See TileSink."""
        waiting, self._waiting = self._waiting, []
        errors = [error for error in (future.exception() for future in waiting) if error]
        if errors:
            raise errors[0]

    def forms(self, tile: Tile) -> Sequence[int]:
        """See TileSink."""
        return sorted(self._forms.get(_full(tile), ()))

    def drop_forms(self, tile: Tile) -> None:
        """See TileSink. One that cannot be removed now is found at the next start."""
        full = _full(tile)
        for width in self._forms.pop(full, ()):
            path = Tile(tile.level, tile.index, width).path
            self._later(lambda path=path: self._delete(path))  # type: ignore[misc]

    def _write_tile(self, path: str, data: bytes) -> None:
        full = parse_path(path).width == TILE_WIDTH
        headers = {"CacheControl": _IMMUTABLE, **(self._bucket.lock() if full else {})}
        try:
            self._put(path, data, IfNoneMatch="*", **headers)
        except _PreconditionError:
            # It is there: of an attempt whose answer was lost, or it has to be put right.
            if (found := self._get(path)) is None or found[0] != data:
                self._put(path, data, **headers)

    def _write_checkpoint(self, data: bytes) -> None:
        before, self._attempted = self._attempted, data
        try:
            self._replace_checkpoint(data)
        except _PreconditionError:
            found = self.read(CHECKPOINT_PATH)
            if found == data:
                return
            # Of an attempt of our own whose answer was lost?
            if found is None or found != before:
                raise SinkMovedError from None
            self._replace_checkpoint(data)

    def _replace_checkpoint(self, data: bytes) -> None:
        seen = self._checkpoint_tag
        condition = {"IfMatch": seen} if seen else {"IfNoneMatch": "*"}
        self._checkpoint_tag = self._put(CHECKPOINT_PATH, data, **_CHANGING, **condition)

    def _put(self, path: str, data: bytes, **more: Any) -> str:
        more.setdefault("ContentType", "application/octet-stream")
        digest = base64.b64encode(md5(data, usedforsecurity=False).digest()).decode()
        done = self._call(
            "put_object", Key=self._prefix + path, Body=data, ContentMD5=digest, **more
        )
        try:
            return str(done["ETag"])
        except KeyError:
            raise SinkUnavailableError from None

    def _get(self, path: str) -> tuple[bytes, str] | None:
        try:
            found = self._call("get_object", Key=self._prefix + path)
            return found["Body"].read(), str(found["ETag"])
        except _MissingError:
            return None
        except _FOREIGN:
            raise SinkUnavailableError from None

    def _delete(self, path: str) -> None:
        self._call("delete_object", Key=self._prefix + path)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        try:
            done: dict[str, Any] = getattr(self._bucket.client, method)(
                Bucket=self._bucket.name, **parameters
            )
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            # A bucket that is missing is another matter.
            if code == "NoSuchKey":
                raise _MissingError from None
            # The second: another conditional write of the same object is under way.
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise _PreconditionError from None
            raise SinkUnavailableError from None
        except _FOREIGN:
            raise SinkUnavailableError from None
        return done

    def _later(self, action: Callable[[], None]) -> None:
        self._slots.acquire()

        def run() -> None:
            try:
                action()
            finally:
                self._slots.release()

        self._waiting.append(self._bucket.threads.submit(run))

    def _note(self, path: str) -> None:
        try:
            tile = parse_path(path)
        except TileError:
            return
        if tile.width != TILE_WIDTH:
            self._forms.setdefault(_full(tile), set()).add(tile.width)


class S3Sinks:
    """Sinks in one bucket, each below `prefix` and the name of its log."""

    def __init__(self, bucket: S3Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def open(self, folder: Path, origin: str) -> S3Sink:  # noqa: ARG002
        """See Sinks."""
        return S3Sink(self._bucket, f"{self._prefix}/{origin}" if self._prefix else origin)

    def close(self) -> None:
        """See Sinks."""
        self._bucket.close()


class _PreconditionError(SinkUnavailableError):
    """What was to be replaced is not what was last seen."""


class _MissingError(SinkUnavailableError):
    """There is no such object."""


def _full(tile: Tile) -> Tile:
    return Tile(tile.level, tile.index)


def _tag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'
