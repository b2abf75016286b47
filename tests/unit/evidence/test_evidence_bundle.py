"""Bundles: the same bytes each time, a README that works, the salt in its own event alone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from sealward.evidence.bundle import Call, archive, bundle_files
from sealward.evidence.event import EvidenceError
from sealward.evidence.readme import steps
from sealward.kit import attributes as names
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt, verify_receipt
from tests.support.evidence_events import (
    LOGIN,
    MODEL_DIGEST,
    PREDICTION,
    REFERENCE,
    REQUEST,
    RESPONSE,
    SALT,
    make_events,
)

EVENTS = make_events([PREDICTION, LOGIN])
CALL = Call(EVENTS[0].event_id, SALT, sha256(REQUEST).digest(), sha256(RESPONSE).digest())


def test_the_files_are_the_events() -> None:
    files = bundle_files(EVENTS)
    assert set(files) == {
        "README.txt", "checkpoint", "index.html", "log.vkey",
        *(f"events/{e.id}.{kind}" for e in EVENTS for kind in ("tlog-proof", "leaf", "json")),
    }  # fmt: skip
    vkeys = parse_vkeys(files["log.vkey"].decode())
    for event in EVENTS:
        receipt = open_receipt(files[f"events/{event.id}.tlog-proof"], vkeys, event.origin)
        assert (receipt.event_id, receipt.salt) == (event.event_id, bytes(32))
        assert receipt.note == files["checkpoint"]
        assert files[f"events/{event.id}.leaf"] == event.leaf
        opened = json.loads(files[f"events/{event.id}.json"])
        assert opened["span"]["attributes"][names.ACTOR_ID] == "dr-smith"
        assert opened["log_index"] == event.index


def test_the_callers_receipt_is_in_its_own_event_alone() -> None:
    files = bundle_files(EVENTS, CALL)
    vkeys = parse_vkeys(files["log.vkey"].decode())
    verify_receipt(
        files[f"events/{EVENTS[0].id}.tlog-proof"],
        vkeys=vkeys,
        request_digest=CALL.request,
        response_digest=CALL.response,
        model_digest=MODEL_DIGEST,
        outcome=Outcome.OK,
    )
    other = open_receipt(files[f"events/{EVENTS[1].id}.tlog-proof"], vkeys)
    assert other.salt == bytes(32)
    page = files["index.html"].decode()
    assert CALL.request.hex() in page
    assert CALL.request.hex() not in bundle_files(EVENTS)["index.html"].decode()


@pytest.mark.parametrize(
    "call",
    [
        Call(EVENTS[0].event_id, bytes(32), CALL.request, CALL.response),
        Call(EVENTS[0].event_id, SALT, CALL.response, CALL.response),
        Call(EVENTS[0].event_id, SALT, CALL.request, bytes(32)),
        Call(EVENTS[1].event_id, SALT, CALL.request, CALL.response),
        Call(bytes(16), SALT, CALL.request, CALL.response),
    ],
)
def test_a_call_of_another_event_is_refused(call: Call) -> None:
    with pytest.raises(EvidenceError):
        bundle_files(EVENTS, call)


def test_no_events_and_too_many_are_refused() -> None:
    with pytest.raises(EvidenceError):
        bundle_files([])
    with pytest.raises(EvidenceError):
        bundle_files(EVENTS * 5001)


def test_the_same_events_give_the_same_bytes() -> None:
    one, two = bundle_files(EVENTS, CALL), bundle_files(list(EVENTS), CALL)
    assert one == two
    packed = archive(one, "evidence")
    assert packed == archive(dict(reversed(two.items())), "evidence")
    with zipfile.ZipFile(io.BytesIO(packed)) as read:
        assert read.testzip() is None
        assert {i.filename: read.read(i) for i in read.infolist()} == {
            f"evidence/{name}": content for name, content in one.items()
        }


def test_the_page_allows_its_own_program_alone() -> None:
    page = bundle_files(EVENTS)["index.html"].decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=|https?://", page)


def test_nothing_of_a_record_is_read_as_html() -> None:
    nasty = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'
    (event,) = make_events([{**PREDICTION, names.TARGET: nasty}])
    page = bundle_files([event])["index.html"].decode()
    assert "alert(1)" not in page
    assert page.count("<script") == 2


def test_the_patient_in_clear_is_only_where_the_span_has_it() -> None:
    everything = b"".join(bundle_files(EVENTS).values())
    assert REFERENCE.encode() not in everything
    identified = make_events([{**PREDICTION, names.PATIENT_REFERENCE: REFERENCE}])
    files = bundle_files(identified)
    assert REFERENCE.encode() in files[f"events/{identified[0].id}.json"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("spoiled", ["", "checkpoint", "leaf", "vkey"])
def test_the_commands_of_the_readme_work(tmp_path: Path, spoiled: str) -> None:
    files = bundle_files(EVENTS)
    readme = files["README.txt"].decode()
    name = f"events/{EVENTS[0].id}.leaf"
    if spoiled == "checkpoint":
        size = b"\n%d\n" % (len(EVENTS) + 5)
        assert size in files["checkpoint"]
        files["checkpoint"] = files["checkpoint"].replace(size, b"\n8\n")
    elif spoiled == "leaf":
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    elif spoiled == "vkey":
        files["log.vkey"] = make_other_key(files["log.vkey"])
    for path, content in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    commands = steps(EVENTS, list(files)).values()
    assert all(command in readme for command in commands)
    script = "\n".join(commands)
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if spoiled:
        assert done.returncode != 0, done.stdout
        return
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert sha256(b"\0" + EVENTS[0].leaf).hexdigest() in done.stdout
    assert f"entry {EVENTS[0].index} of 7 holds" in done.stdout


def make_other_key(vkey: bytes) -> bytes:
    name, key_id, material = vkey.strip().split(b"+", 2)
    raw = bytearray(base64.b64decode(material))
    raw[1:] = base64.b64decode("1zHzWspAXBVkPeDuRJMTfkvd6NXVwQFN98G2XQ0lQzE=")
    return b"+".join((name, key_id, base64.b64encode(bytes(raw)))) + b"\n"
