"""A whole suite whose log ends and changes its key: no call fails, every receipt verifies."""

from __future__ import annotations

import threading
from pathlib import Path

from sealward.client import Client
from sealward.client.profile import Profile
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt
from tests.support.suites import heldout, running, until

MODEL = "breast-cancer"


def test_predictions_go_on_while_logs_follow_one_another(tmp_path: Path) -> None:
    with running(tmp_path / "data") as suite:
        folder = suite.suite.clients / suite.user("grace")
        rows = heldout(MODEL)[:1]
        receipts: list[bytes] = []
        failed: list[Exception] = []
        stop = threading.Event()

        def ask() -> None:
            # One client all the time: it meets both logs and both keys.
            with Client.from_profile(folder) as client:
                while not stop.is_set():
                    try:
                        receipts.append(client.infer(MODEL, rows).receipt)
                    except Exception as error:  # noqa: BLE001 - any failure is the finding
                        failed.append(error)
                        return

        callers = [threading.Thread(target=ask) for _ in range(2)]
        for caller in callers:
            caller.start()

        def more(count: int) -> None:
            have = len(receipts)
            until(lambda: len(receipts) >= have + count or bool(failed), "predictions")

        more(5)
        (first,) = suite.sealward("audit", "logs")["logs"]
        rotated = suite.sealward("audit", "logs", "rotate-key")
        more(5)
        frozen = suite.sealward("audit", "logs", "freeze")
        more(5)
        stop.set()
        for caller in callers:
            caller.join()
        assert not failed
        vkeys = parse_vkeys(suite.suite.vkey_file.read_text())
        opened = [open_receipt(receipt, vkeys) for receipt in receipts]
        assert {r.checkpoint.origin for r in opened} == {first["origin"], frozen["successor"]}
        assert len({r.event_id for r in opened}) == len(receipts)
        assert set(Profile.load(folder).checkpoints()) == {first["origin"], frozen["successor"]}

        current, ended = suite.sealward("audit", "logs", "list")["logs"]
        assert (current["state"], ended["state"]) == ("current", "frozen")
        assert ended["vkeys"] == [rotated["new_vkey"], rotated["old_vkey"]]
        old = suite.suite.root / "audit" / ended["folder"]
        arguments = ("--log", str(old / "log"), "--vkey", str(old / "log.vkey"))
        assert suite.sealward("audit", "verify", *arguments)["size"] == ended["size"]
        until(lambda: suite.verify().origin == current["origin"], "the next log is published")
        # What stands in the ended log is still shown, and still found.
        event = str(opened[0].event_id.hex())
        assert suite.event(event)["log_index"] == opened[0].index
        assert suite.sealward("audit", "query", "--type", "audit.freeze")["events"]

        suite.sealward("audit", "logs", "archive", ended["origin"])
        hold = suite.sealward("audit", "hold", "place", "--patient", "mrn-1")["hold"]
        assert [h["hold"] for h in suite.sealward("audit", "hold", "list")["holds"]] == [hold]
        suite.sealward("audit", "hold", "release", hold)
        purge = ("audit", "logs", "purge", ended["origin"])
        assert suite.sealward(*purge, code=2)
        refused = suite.sealward(*purge, "--confirm", ended["origin"], code=1)
        assert refused["error"]["reason"] == "LOG_RETAINED"
        done = suite.sealward("audit", "reindex", "--log", ended["origin"])
        assert done["digest"] == done["before"]
