"""`audit verify` whole, going on after a state, and following logs that grow, turn and change."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.cli.audit.following import Follower
from sealward.cli.audit.verifying import Verification
from sealward.cli.errors import CliError
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.logchange import LogFinal, LogSuccessor, change_leaf
from sealward.tlog.logdir import LogReport, directory_reader, verify_log
from sealward.tlog.note import parse_vkeys
from services.audit.logkeys import DAY, rotate
from tests.support.audit_shards import Logs, opened
from tests.support.audit_suite import entry_bytes
from tests.support.inference_suite import until
from tests.support.tlog_logs import ORIGIN, entries, entry, log_files, signer, write_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    put(tmp_path, 600)
    (tmp_path / "log.vkey").write_text(f"{signer().vkey}\n")
    return tmp_path / "log"


def put(folder: Path, size: int, **changed: bytes) -> None:
    leaves = entries(size)
    for at, leaf in changed.items():
        leaves[int(at.removeprefix("at"))] = leaf
    write_log(folder / "log", log_files(leaves))


def verification(log: Path, state: Path | None = None, *known: Path) -> Verification:
    vkeys = parse_vkeys((log.parent / "log.vkey").read_text())
    return Verification(log, vkeys, known, None, state, progress=False)


def test_a_state_makes_the_next_time_short(log: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, text = verification(log, state).once()
    assert (first["size"], first["after"]) == (600, 0)
    assert "new" not in text
    assert state.stat().st_mode & 0o077 == 0
    put(tmp_path, 900)
    # What was verified is not read again.
    (log / "tile/entries/000").unlink()
    second, text = verification(log, state).once()
    assert (second["size"], second["after"]) == (900, 600)
    assert "300 of them new" in text
    with pytest.raises(CliError, match="tile/entries/000 is missing"):
        verification(log).once()
    third, _ = verification(log, state).once()
    assert (third["size"], third["after"]) == (900, 900)


def test_what_does_not_hold_leaves_the_state_as_it_was(log: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    verification(log, state).once()
    kept = state.read_bytes()
    put(tmp_path, 900, at5=entry(10_000))
    with pytest.raises(CliError, match="not of the same log as a known one of 600"):
        verification(log, state).once()
    put(tmp_path, 900)
    good = (log / "tile/entries/003.p/132").read_bytes()
    (log / "tile/entries/003.p/132").write_bytes(good[:-1] + b"?")
    with pytest.raises(CliError) as caught:
        verification(log, state).once()
    assert caught.value.details["entry"] == 899
    assert state.read_bytes() == kept
    state.write_bytes(b"nonsense\n")
    with pytest.raises(CliError, match="state"):
        verification(log, state)


def test_a_checkpoint_of_before_still_counts_with_a_state(log: Path, tmp_path: Path) -> None:
    state, seen = tmp_path / "state", tmp_path / "seen"
    verification(log, state).once()
    seen.write_bytes(log_files(entries(100))["checkpoint"])
    verification(log, state, seen).once()
    forged = [*entries(99), entry(10_000)]
    seen.write_bytes(log_files(forged)["checkpoint"])
    with pytest.raises(CliError, match="not of the same log as a known one of 100"):
        verification(log, state, seen).once()


# --- following real logs --------------------------------------------------------------------------


class Watch:
    """A follower whose steps a test takes; what it verified is counted, whatever was read."""

    def __init__(self, folder: Path, vkeys: Path) -> None:
        self.entries = 0
        self.follower = Follower(
            folder, parse_vkeys(vkeys.read_text()), self.verify, patience=0.0, pause=lambda: None
        )
        self.reports = self.follower.begin(None)

    def verify(self, folder: Path, vkeys: Any, after: Any) -> LogReport:
        try:
            return verify_log(directory_reader(folder), vkeys, after=after)
        except Exception as error:
            raise CliError(str(error)) from error

    def step(self) -> list[tuple[str, int, int]]:
        return [(r.origin.rpartition("/")[2], r.after, r.size) for r in self.follower.step()]


def publish(logs: Logs, tenant: str = "default") -> None:
    logs.shards.current(tenant).publisher.rebuild()


def arrived(logs: Logs, tenant: str = "default") -> None:
    """Wait until a log that publishes by itself, as the one after a turn does, has done so."""
    shard = logs.shards.current(tenant)
    until(lambda: shard.publisher.behind == 0)
    until((shard.place.published / "checkpoint").exists)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    with opened(tmp_path / "audit") as made:
        # Only when a test says so.
        for tenant in made.shards.tenants:
            made.shards.current(tenant).publisher.stop(10)
        made.append(*(entry_bytes() for _ in range(300)))
        publish(made)
        yield made


def test_growth_and_a_change_of_key_are_followed(logs: Logs, tmp_path: Path) -> None:
    # The key file as it was when the watcher began; nobody gives it another.
    vkeys = tmp_path / "trusted"
    vkeys.write_bytes((tmp_path / "audit/log.vkey").read_bytes())
    watch = Watch(tmp_path / "audit/log", vkeys)
    assert [r.size for r in watch.reports] == [300]
    assert watch.step() == []
    logs.append(*(entry_bytes() for _ in range(20)))
    publish(logs)
    assert watch.step() == [("2026", 300, 320)]
    shard = logs.shards.current()
    rotate(shard, logs.ring, logs.clock.now + DAY)
    publish(logs)
    assert watch.step() == [("2026", 320, 321)]
    logs.clock.now += 2 * DAY
    logs.rollover.tick()
    logs.append(entry_bytes())
    publish(logs)
    # The old key signs no more; the new one was named in the log.
    note = (tmp_path / "audit/log/checkpoint").read_bytes()
    with pytest.raises(Exception, match="not signed"):
        open_checkpoint(note, parse_vkeys(vkeys.read_text()))
    assert watch.step() == [("2026", 321, 322)]


def test_a_turn_is_followed_to_the_next_log(logs: Logs, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    watch = Watch(folder / "log", folder / "log.vkey")
    logs.append(entry_bytes())
    logs.rollover.turn("default", "2027")
    arrived(logs)
    # What came last in the old one, where it lies now, then all of the new one.
    assert watch.step() == [("2026", 300, 302), ("2027", 0, 1)]
    logs.append(entry_bytes())
    arrived(logs)
    assert watch.step() == [("2027", 1, 2)]


def test_a_log_that_stays_where_it_is_leads_on_too(logs: Logs, tmp_path: Path) -> None:
    logs.append(entry_bytes(tenant="north"))
    publish(logs, "north")
    folder = tmp_path / "audit/logs/north/2026"
    watch = Watch(folder / "log", folder / "log.vkey")
    logs.rollover.turn("north", "2027")
    arrived(logs, "north")
    assert watch.step() == [("2026", 1, 2)]
    assert watch.step() == [("2027", 0, 1)]
    assert watch.step() == []


def test_a_log_in_the_place_of_another_is_no_successor(logs: Logs, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    watch = Watch(folder / "log", folder / "log.vkey")
    other = Logs(tmp_path / "other")
    other.append(entry_bytes())
    other.shards.current().publisher.stop(10)
    other.shards.current().publisher.rebuild()
    foreign = (tmp_path / "other/log/checkpoint").read_bytes()
    other.close()
    (folder / "log/checkpoint").write_bytes(foreign)
    with pytest.raises(CliError, match="has not been seen"):
        watch.step()
    # With its tail at hand, it still does not lead there.
    place = folder / "logs/default/2026"
    place.mkdir(parents=True)
    logs.shards.current().publisher.rebuild()
    (folder / "log").rename(place / "log")
    write = folder / "log"
    write.mkdir()
    (write / "checkpoint").write_bytes(foreign)
    with pytest.raises(CliError, match="does not follow"):
        watch.step()


@pytest.mark.parametrize("begins", ["with it", "with another", "with nothing", "late"])
def test_the_next_log_begins_with_the_end_of_the_one_before(tmp_path: Path, begins: str) -> None:
    """Whoever has the next log's key cannot leave out, or exchange, the log before it."""
    folder, moved = tmp_path / "log", tmp_path / "logs/default/2026/log"
    following = ORIGIN.replace("2026", "2027")
    final = LogFinal(ORIGIN, following, signer(name=following).vkey)
    old = [*entries(300), change_leaf(bytes(16), final)]
    write_log(folder, log_files(old))
    (tmp_path / "log.vkey").write_text(f"{signer().vkey}\n")
    watch = Watch(folder, tmp_path / "log.vkey")
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    told = log_files([*old[1:], old[0]] if begins == "with another" else old)["checkpoint"]
    first = change_leaf(bytes(range(16)), LogSuccessor(following, ORIGIN, told))
    leaves = {"with nothing": entries(3), "late": [*entries(2), first]}
    new = leaves.get(begins, [first, *entries(2)])
    write_log(folder, log_files(new, origin=following))
    if begins == "with it":
        assert watch.step() == [("2027", 0, 3)]
        return
    with pytest.raises(CliError, match="does not begin with the final checkpoint") as caught:
        watch.step()
    assert caught.value.details["entry"] == 0


def test_a_log_that_goes_on_after_its_end_leads_nowhere(tmp_path: Path) -> None:
    folder, moved = tmp_path / "log", tmp_path / "logs/default/2026/log"
    following = ORIGIN.replace("2026", "2027")
    end = change_leaf(bytes(16), LogFinal(ORIGIN, following, signer(name=following).vkey))
    write_log(folder, log_files([*entries(300), end]))
    (tmp_path / "log.vkey").write_text(f"{signer().vkey}\n")
    watch = Watch(folder, tmp_path / "log.vkey")
    old = log_files([*entries(300), end, entry(301)])
    write_log(folder, old)
    assert watch.step() == [("2026", 301, 302)]
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    first = change_leaf(bytes(16), LogSuccessor(following, ORIGIN, old["checkpoint"]))
    write_log(folder, log_files([first], origin=following))
    with pytest.raises(CliError, match="does not follow the one before"):
        watch.step()


def test_a_smaller_log_and_one_that_is_gone_are_told(logs: Logs, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    before = (folder / "log/checkpoint").read_bytes()
    logs.append(entry_bytes())
    publish(logs)
    watch = Watch(folder / "log", folder / "log.vkey")
    (folder / "log/checkpoint").write_bytes(before)
    with pytest.raises(CliError, match="older than a known one"):
        watch.step()
    (folder / "log/checkpoint").unlink()
    with pytest.raises(CliError, match="cannot be read any more"):
        watch.step()


def test_a_state_of_last_year_leads_to_this_year(logs: Logs, tmp_path: Path) -> None:
    folder, state = tmp_path / "audit", tmp_path / "state"
    verification(folder / "log", state).once()
    logs.append(entry_bytes())
    logs.rollover.turn("default", "2027")
    arrived(logs)
    found, text = verification(folder / "log", state).once()
    assert (found["origin"].rpartition("/")[2], found["size"]) == ("2027", 1)
    assert "302 entries (2 of them new)" in text
    # Also when all of the old one had been verified before.
    old = folder / "logs/default/2026/log"
    state.write_bytes((old / "checkpoint").read_bytes())
    found, _ = verification(folder / "log", state).once()
    assert (found["origin"].rpartition("/")[2], found["size"]) == ("2027", 1)


def test_the_command_follows_until_something_is_wrong(log: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sealward.cli.main", "audit", "verify", "--follow", "--json"]
    files = ["--log", str(log), "--vkey", str(log.parent / "log.vkey")]
    with subprocess.Popen([*command, *files], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        try:
            assert json.loads(watcher.stdout.readline())["size"] == 600
            put(tmp_path, 650)
            grown = json.loads(watcher.stdout.readline())
            assert (grown["after"], grown["size"]) == (600, 650)
            put(tmp_path, 700, at620=entry(10_000))
            error = json.loads(watcher.stdout.read())["error"]
            assert error["verified"] is False
            assert watcher.wait(30) == 1
        finally:
            watcher.kill()
    with subprocess.Popen([*command, *files], stdout=subprocess.PIPE) as watcher:
        put(tmp_path, 600)
        assert watcher.stdout is not None
        assert watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(30) == 130
