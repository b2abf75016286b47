"""The caller's own list: every call is in it before it is sent, and no number is given twice."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sealward.client import (
    AsyncClient,
    Client,
    DeniedError,
    ProfileError,
    UnavailableError,
    WrongReceiptError,
    attach,
)
from sealward.client.calls import CallList
from sealward.kit.calllist import Begins, Ended, Line, Sent, Skipped, read_line
from sealward.kit.reasons import Code
from tests.support.gateway_double import TOKEN, GatewayDouble, with_trailer, without
from tests.unit.client.test_client_attach import Stock

ROWS = {"x": np.ones((1, 3), np.float32)}
PATIENT = "mrn-canary-3391"
BOOT, OTHER_BOOT = b"boot-one", b"boot-two"


def lines(folder: Path) -> list[Line]:
    """All lines of a list, the oldest first."""
    files = [*sorted(folder.glob("calls-*.ndjson")), *folder.glob("calls.ndjson")]
    return [read_line(line) for file in files for line in file.read_bytes().splitlines()]


def ends(folder: Path) -> list[Ended]:
    return [line for line in lines(folder) if isinstance(line, Ended)]


def sent(folder: Path) -> list[int]:
    return [line.seq for line in lines(folder) if isinstance(line, Sent)]


def test_a_call_is_listed_before_it_is_sent_and_when_it_ended(
    gateway: GatewayDouble, folder: Path
) -> None:
    seen: list[list[Line]] = []
    record = gateway.record

    def looking(*arguments: Any) -> Any:
        seen.append(lines(folder))
        return record(*arguments)

    gateway.record = looking  # type: ignore[method-assign,assignment]
    with Client.from_profile(folder) as client:
        client.login("right")
        result = client.infer("m", ROWS, patient=PATIENT)
    begins, begun = seen[-1]
    assert isinstance(begins, Begins)
    assert (begins.user, begins.part) == ("alice", 1)
    assert isinstance(begun, Sent)
    (ended,) = ends(folder)
    assert (ended.session, ended.seq, ended.outcome) == (begun.session, 1, "ok")
    assert (ended.event_id.hex(), ended.log_index) == (
        result.event_id.replace("-", ""), result.log_index,
    )  # fmt: skip
    assert ended.log == gateway.signer.name
    assert ended.at >= begun.at
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600 or path.suffix == ".pem"
        assert PATIENT.encode() not in path.read_bytes()
    for path in folder.glob("calls*"):
        assert TOKEN.encode() not in path.read_bytes()


def test_the_session_goes_by_its_public_id_once_it_is_known(folder: Path) -> None:
    calls = CallList(folder, "alice")
    unknown = calls.begin(TOKEN).session
    calls.learn(TOKEN, "ab" * 16)
    assert unknown.startswith("~")
    assert calls.begin(TOKEN).session == "ab" * 16
    # What is no session id is not taken for one.
    calls.learn("other", "s")
    calls.learn("other", "zz" * 16)
    assert calls.begin("other").session.startswith("~")


def outcomes(folder: Path) -> list[tuple[str, str, str, bool]]:
    return [(e.outcome, e.code, e.reason, bool(e.event_id)) for e in ends(folder)]


def test_how_it_ended_is_what_the_caller_saw(gateway: GatewayDouble, folder: Path) -> None:
    with Client.from_profile(folder) as client:
        gateway.deny = grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(DeniedError):
            client.infer("m", ROWS)
        gateway.lie = without("sealward-receipt-bin")
        with pytest.raises(DeniedError):
            client.infer("m", ROWS)
        gateway.deny = None
        with pytest.raises(Exception, match="receipt"):
            client.infer("m", ROWS)
        gateway.lie = with_trailer("sealward-log-index", "77")
        with pytest.raises(WrongReceiptError):
            client.infer("m", ROWS)
        gateway.stop()
        with pytest.raises(UnavailableError):
            client.infer("m", ROWS, timeout=5)
    denied = ("PERMISSION_DENIED", "POLICY_DENIED")
    assert outcomes(folder) == [
        ("denied", *denied, True),
        ("no-answer", *denied, False),
        ("untrusted", "", "", False),
        ("untrusted", "", "", False),
        ("no-answer", "UNAVAILABLE", "", False),
    ]
    assert sent(folder) == [1, 2, 3, 4, 5]


class Hold(threading.Event):
    """Says when somebody has come to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.arrived.set()
        return super().wait(timeout)


def test_a_call_that_is_cancelled_is_listed_without_end(
    gateway: GatewayDouble, folder: Path
) -> None:
    hold = gateway.hold = Hold()

    async def run() -> None:
        async with AsyncClient.from_profile(folder) as client:
            await client.model("m")
            call = asyncio.ensure_future(client.infer("m", ROWS))
            assert await asyncio.to_thread(hold.arrived.wait, 20)
            call.cancel()
            await asyncio.wait([call])
            hold.set()
            await client.infer("m", ROWS)

    asyncio.run(run())
    assert sent(folder) == [1, 2]
    assert [e.seq for e in ends(folder)] == [2]


def test_attach_lists_the_same(gateway: GatewayDouble, folder: Path) -> None:
    stock = Stock(folder)
    attached = attach(stock, folder)
    try:
        stock.infer()
        future, called = stock.async_infer()
        assert called.wait(20)
        future.result()
        # A number and a session of the caller's own.
        stock.infer((("sealward-seq", "41"), ("authorization", "Bearer mine")))
        gateway.deny = grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError):
            stock.infer()
        gateway.lie = without("sealward-receipt-bin")
        gateway.deny = None
        with pytest.raises(Exception, match="receipt"):
            stock.infer()
    finally:
        attached.close()
    found = [(e.seq, e.outcome) for e in ends(folder)]
    assert found == [(1, "ok"), (2, "ok"), (41, "ok"), (3, "denied"), (4, "untrusted")]
    assert [m["sealward-seq"] for m in gateway.metadata] == ["1", "2", "41", "3", "4"]
    sessions = [e.session for e in ends(folder)]
    assert sessions[0] == sessions[1] == sessions[3] != sessions[2]


def test_sessions_side_by_side_each_count_on(folder: Path) -> None:
    one, two = CallList(folder, "a"), CallList(folder, "a")
    numbers = [one.begin(TOKEN), two.begin("b"), one.begin(TOKEN), two.begin(TOKEN), one.begin("b")]
    assert [call.seq for call in numbers] == [1, 1, 2, 3, 2]
    assert TOKEN.encode() not in (folder / "sequence").read_bytes()
    assert (folder / "sequence").stat().st_mode & 0o777 == 0o600


def _count(folder: str, token: str, times: int) -> None:
    calls = CallList(Path(folder), "a", part_bytes=4096, mib=1)
    for _ in range(times):
        calls.begin(token).failed(UnavailableError(_CODE, "gone"))
    # Not through the interpreter's exit: that of a forked test process has plans of its own.
    os._exit(0)


_CODE = Code.UNAVAILABLE


def test_no_number_is_given_twice_across_processes_and_files(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_count, args=(str(folder), token, 60))
        for token in ("one", "one", "two")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found = lines(folder)
    numbers = Counter((x.session, x.seq) for x in found if isinstance(x, Sent))
    assert set(numbers.values()) == {1}
    assert sorted(Counter(session for session, _ in numbers).values()) == [60, 120]
    for session in {session for session, _ in numbers}:
        mine = sorted(seq for s, seq in numbers if s == session)
        assert mine == list(range(1, len(mine) + 1))
    assert len([x for x in found if isinstance(x, Ended)]) == 180
    parts = [x.part for x in found if isinstance(x, Begins)]
    assert parts == list(range(1, len(parts) + 1))
    assert len(parts) > 3


def test_the_list_is_bounded_and_says_which_part_it_is(folder: Path) -> None:
    calls = CallList(folder, "a", mib=1, part_bytes=256 << 10)
    for _ in range(20_000):
        calls.begin(TOKEN)
    files = sorted(folder.glob("calls*.ndjson"))
    assert sum(file.stat().st_size for file in files) <= (1 << 20) + 4096
    assert len(files) == 4
    parts = [line.part for line in lines(folder) if isinstance(line, Begins)]
    assert parts == [parts[0], parts[0] + 1, parts[0] + 2, parts[0] + 3]
    assert parts[0] > 1
    assert sent(folder)[-1] == 20_000


def test_after_a_boot_the_numbers_go_on_above_what_may_have_been_sent(folder: Path) -> None:
    before = CallList(folder, "a", boot=BOOT)
    state = (folder / "sequence").read_bytes() if before.begin(TOKEN).seq == 1 else b""
    for _ in range(100):
        before.begin(TOKEN)
    # The disk has what was synced; the later counts were in memory alone.
    (folder / "sequence").write_bytes(state)
    after = CallList(folder, "a", boot=OTHER_BOOT)
    assert after.begin(TOKEN).seq == 257
    skipped = [line for line in lines(folder) if isinstance(line, Skipped)]
    assert [(line.first, line.last) for line in skipped] == [(2, 256)]
    assert CallList(folder, "a", boot=OTHER_BOOT).begin(TOKEN).seq == 258


def test_numbers_of_an_earlier_version_go_on(folder: Path) -> None:
    from sealward.client.numbers import tag_of

    (folder / "sequence").write_bytes(tag_of(TOKEN) + (41).to_bytes(8, "big"))
    assert CallList(folder, "a").begin(TOKEN).seq == 42


@pytest.mark.parametrize("data", [b"not a sequence file at all", b"x"])
def test_a_damaged_count_stops_calls(folder: Path, data: bytes) -> None:
    (folder / "sequence").write_bytes(data)
    with pytest.raises(ProfileError, match="sequence"):
        CallList(folder, "a").begin(TOKEN)


def limited(size: int, action: Callable[[], object]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_cannot_be_listed_is_not_sent_and_takes_no_number(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = CallList(folder, "a")
    begun = calls.begin(TOKEN)
    size = (folder / "calls.ndjson").stat().st_size

    def full() -> None:
        with pytest.raises(ProfileError, match="cannot be written"):
            calls.begin(TOKEN)
        # The answer is not lost with its line.
        begun.failed(UnavailableError(_CODE, "gone"))

    limited(size + 20, full)
    assert "listed without end" in caplog.text
    assert calls.begin(TOKEN).seq == 2
    # What the full disk took of a line spoils no other.
    raw = (folder / "calls.ndjson").read_bytes().splitlines()
    good = []
    for line in raw:
        try:
            good.append(json.loads(line).get("seq"))
        except ValueError:
            good.append("spoilt")
    assert good == [None, 1, "spoilt", 2]


def test_a_limit_that_is_no_number_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALWARD_CALLS_MIB", "much")
    with pytest.raises(ProfileError, match="SEALWARD_CALLS_MIB"):
        Client.from_profile(folder)
    monkeypatch.setenv("SEALWARD_CALLS_MIB", "32")
    Client.from_profile(folder).close()
