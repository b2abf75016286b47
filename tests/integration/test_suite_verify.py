"""`sealward audit verify` beside a running suite: incremental, and watching it through a turn."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.suites import RunningSuite, running, until


@contextmanager
def watching(suite: RunningSuite, *arguments: str) -> Iterator[queue.SimpleQueue[dict[str, Any]]]:
    """Run `audit verify --follow` and collect what it prints."""
    lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    command = [sys.executable, "-m", "sealward.cli.main", "audit", "verify", "--follow", "--json"]
    with subprocess.Popen(
        [*command, "--dir", str(suite.suite.root), *arguments], stdout=subprocess.PIPE, text=True
    ) as watcher:

        def read() -> None:
            assert watcher.stdout is not None
            for text in watcher.stdout:
                lines.put(json.loads(text))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield lines
            assert watcher.poll() is None
        finally:
            watcher.terminate()
            reader.join()


def test_a_watcher_verifies_what_is_published_through_a_turn(tmp_path: Path) -> None:
    with running(tmp_path / "data") as suite:
        ann = suite.user("ann")
        until(
            lambda: suite.sealward("audit", "witness")["logs"][0]["cosigned"] > 0,
            "the log is cosigned",
        )
        policy = tmp_path / "policy"
        policy.write_bytes(suite.suite.policy_file.read_bytes())
        with watching(suite, "--policy", str(policy)) as lines:
            first = lines.get(timeout=60)
            assert (first["verified"], first["after"]) == (True, 0)
            assert first["cosigned"]["size"] > 0
            seen = [first]

            def verified(index: int) -> bool:
                while not lines.empty():
                    seen.append(lines.get())
                return bool(seen[-1]["size"] > index)

            answer = suite.ask(ann)
            until(lambda: verified(answer.proof.log_index), "the watcher has seen the call")
            state = tmp_path / "state"
            verify = ("audit", "verify", "--state", str(state))
            whole = suite.sealward(*verify)
            suite.sealward("audit", "logs", "freeze")
            later = suite.ask(ann)
            until(
                lambda: verified(later.proof.log_index) and seen[-1]["origin"] != first["origin"],
                "the watcher has seen the call in the next log",
            )
            # Without a hole: each report begins where the one before ended, or with a new log.
            for before, report in itertools.pairwise(seen):
                follows = report["after"] == before["size"]
                assert follows if report["origin"] == before["origin"] else report["after"] == 0
            until(lambda: suite.published() > later.proof.log_index, "the call is published")
            # The next log may be seen before its witness has answered; what comes then is cosigned.
            until(
                lambda: (
                    suite.sealward("audit", "witness")["logs"][0]["cosigned"]
                    > later.proof.log_index
                ),
                "the next log is cosigned",
            )
            last = suite.ask(ann)
            until(lambda: verified(last.proof.log_index), "the watcher has seen the last call")
            assert seen[-1]["cosigned"]["size"] > later.proof.log_index
        again = suite.sealward(*verify)
        assert again["origin"] == seen[-1]["origin"] != whole["origin"]
        third = suite.sealward(*verify)
        assert third["after"] == again["size"]
