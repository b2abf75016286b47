"""The evidence page in a real browser: green as it is made, red after one flipped bit."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sealward.evidence.bundle import Call, bundle_files
from tests.support.browser import Browser
from tests.support.evidence_events import (
    DENIED,
    LOGIN,
    PREDICTION,
    REQUEST,
    RESPONSE,
    SALT,
    make_events,
)  # fmt: skip

EVENTS = make_events([PREDICTION, DENIED, LOGIN])
CALL = Call(EVENTS[0].event_id, SALT, sha256(REQUEST).digest(), sha256(RESPONSE).digest())
PAGE = bundle_files(EVENTS, CALL)["index.html"].decode()
DATA = re.compile(r'(<script type="application/json" id="bundle">)(.*?)(</script>)', re.DOTALL)

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


def page(folder: Path, change: Change) -> Path:
    """The page with its data changed."""
    found = DATA.search(PAGE)
    assert found
    data = json.loads(found[2])
    change(data)
    file = folder / "index.html"
    file.write_text(PAGE[: found.start(2)] + json.dumps(data) + PAGE[found.end(2) :])
    return file


def states(browser: Browser, event: int = 0) -> list[str]:
    script = (
        "JSON.stringify([...document.querySelectorAll('#events > details')]"
        f"[{event}] ? [...[...document.querySelectorAll('#events > details')][{event}]"
        ".querySelectorAll('ol > li')].map((step) => step.dataset.state) : [])"
    )
    found: list[str] = json.loads(browser.run(script))
    return found


def test_every_step_is_green_and_nothing_is_loaded(browser: Browser, tmp_path: Path) -> None:
    file = page(tmp_path, lambda _data: None)
    assert browser.open(file) == "ok"
    assert states(browser, 0) == ["ok"] * 9
    assert states(browser, 1) == ["ok"] * 8
    assert states(browser, 2) == ["ok"] * 8
    assert browser.requests == [file.as_uri()]
    assert "Every step holds for all 3 events" in browser.run(
        "document.getElementById('verdict').textContent"
    )


def edit_file(event: int, name: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(data: dict[str, Any]) -> None:
        entry = data["events"][event]
        entry[name] = base64.b64encode(edit(base64.b64decode(entry[name]))).decode()

    return change


def flip(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        place = at % len(content)
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]

    return edit


def in_line(number: int, edit: Callable[[bytes], bytes], prefix: bytes = b"") -> Change:
    """Edit the decoded base64 of a line of the first event's receipt."""

    def of_proof(content: bytes) -> bytes:
        lines = content.split(b"\n")
        assert lines[number].startswith(prefix), lines[number]
        decoded = base64.b64decode(lines[number][len(prefix) :])
        lines[number] = prefix + base64.b64encode(edit(decoded))
        return b"\n".join(lines)

    return edit_file(0, "proof", of_proof)


PATH = len(EVENTS[0].path)
# Header, extra, index, path, blank line, then the checkpoint.
ORIGIN_LINE = 3 + PATH + 1
NAME = EVENTS[0].origin.encode()


def edit_vkeys(edit: Callable[[bytes], bytes]) -> Change:
    def change(data: dict[str, Any]) -> None:
        data["vkeys"] = base64.b64encode(edit(base64.b64decode(data["vkeys"]))).decode()

    return change


def vkey_material(edit: Callable[[bytes], bytes]) -> Change:
    def of_key(vkeys: bytes) -> bytes:
        name, key_id, material = vkeys.strip().split(b"+", 2)
        changed = edit(base64.b64decode(material))
        return b"+".join((name, key_id, base64.b64encode(changed))) + b"\n"

    return edit_vkeys(of_key)


def call_field(name: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        call = data["events"][0]["call"]
        call[name] = flip(0)(bytes.fromhex(call[name])).hex()

    return change


def loose_bits(content: bytes) -> bytes:
    """Another spelling of the first hash of the path: bits that decoding passes over."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    lines = content.split(b"\n")
    last = alphabet.index(lines[3][42:43])
    lines[3] = lines[3][:42] + alphabet[last ^ 1 : (last ^ 1) + 1] + b"="
    assert base64.b64decode(lines[3]) == EVENTS[0].path[0]
    return b"\n".join(lines)


def both_ids(data: dict[str, Any]) -> None:
    """Another key id in the verifier key and in the signature line: they agree, and are wrong."""
    edit_vkeys(lambda vkeys: vkeys.replace(KEY_ID.hex().encode(), b"00000000"))(data)
    in_line(ORIGIN_LINE + 4, lambda raw: bytes(4) + raw[4:], b"\xe2\x80\x94 " + NAME + b" ")(data)


KEY_ID = EVENTS[0].head.verifiers[0].key_id
FLIPS: dict[str, Change] = {
    "loose-bits": edit_file(0, "proof", loose_bits),
    "both-ids": both_ids,
    "leaf-version": in_line(1, flip(32), b"extra "),
    "leaf-event-id": in_line(1, flip(33), b"extra "),
    "leaf-binding": in_line(1, flip(32 + 17), b"extra "),
    "leaf-sealed": in_line(1, flip(32 + 49 + 3, 7), b"extra "),
    "leaf-last": in_line(1, flip(-1), b"extra "),
    "path-first": in_line(3, flip(0)),
    "path-last": in_line(2 + PATH, flip(31, 7)),
    "root": in_line(ORIGIN_LINE + 2, flip(5)),
    "key-id": in_line(ORIGIN_LINE + 4, flip(0), b"\xe2\x80\x94 " + NAME + b" "),
    "signature-r": in_line(ORIGIN_LINE + 4, flip(4), b"\xe2\x80\x94 " + NAME + b" "),
    "signature-s": in_line(ORIGIN_LINE + 4, flip(40, 3), b"\xe2\x80\x94 " + NAME + b" "),
    "vkey-type": vkey_material(flip(0, 1)),
    "vkey-key": vkey_material(flip(1)),
    "vkey-name": edit_vkeys(flip(0)),
    "vkey-id": edit_vkeys(flip(len(NAME) + 1)),
    "other-place": edit_file(0, "opened", lambda text: text.replace(b'index": 3', b'index": 2')),
    "other-log": edit_file(0, "opened", lambda text: text.replace(b'"log": "s', b'"log": "r')),
    "other-outcome": edit_file(
        0, "opened", lambda text: text.replace(b'outcome": "ok', b'outcome": "failed')
    ),
    "salt": in_line(1, flip(0), b"extra "),
    "request": call_field("request"),
    "response": call_field("response"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLIPS)
def test_one_flipped_bit_turns_the_page_red(browser: Browser, tmp_path: Path, name: str) -> None:
    file = page(tmp_path, FLIPS[name])
    assert browser.open(file) == "bad"
    assert "bad" in states(browser, 0)


def test_a_flipped_bit_all_over_a_receipt_is_found(browser: Browser, tmp_path: Path) -> None:
    places = range(0, len(EVENTS[0].proof(SALT)), 7)

    def change(data: dict[str, Any]) -> None:
        whole = data["events"][0]
        proof = base64.b64decode(whole["proof"])
        data["events"] = [
            {**whole, "proof": base64.b64encode(flip(at, at % 8)(proof)).decode()} for at in places
        ]

    assert browser.open(page(tmp_path, change)) == "bad"
    passed = browser.run(
        "[...document.querySelectorAll('#events > *')].filter((e) => e.dataset.state === 'ok'"
        " || e.dataset.state === 'open').length"
    )
    shown = browser.run("document.querySelectorAll('#events > *').length")
    assert (passed, shown >= len(places)) == (0, True)


def test_a_changed_program_shows_nothing_green(browser: Browser, tmp_path: Path) -> None:
    changed = PAGE.replace('"the signature does not hold"', '"the signature does not hold!"')
    assert changed != PAGE
    file = tmp_path / "index.html"
    file.write_text(changed)
    # The policy names the program's hash, so that the browser does not run it.
    shown = browser.open(file, "document.getElementById('verdict')?.textContent")
    assert shown.startswith("Not checked.")
    assert browser.run("document.querySelectorAll('.ok').length") == 0


def test_without_ed25519_the_step_is_open_and_never_green(browser: Browser, tmp_path: Path) -> None:
    browser.before_page(
        "const whole = SubtleCrypto.prototype.importKey;"
        "SubtleCrypto.prototype.importKey = function (f, k, a, ...r) {"
        " return (a.name || a) === 'Ed25519' ? Promise.reject(new DOMException('no',"
        " 'NotSupportedError')) : whole.call(this, f, k, a, ...r); };"
    )
    assert browser.open(page(tmp_path, lambda _data: None)) == "open"
    assert states(browser, 0) == ["ok", "ok", "open", *["ok"] * 6]
    browser.before_page(
        "Object.defineProperty(Crypto.prototype, 'subtle', {get: () => undefined});"
    )
    assert browser.open(page(tmp_path, lambda _data: None)) == "open"
    # Reading the receipt, the checkpoint, the entry and the content needs no WebCrypto.
    made = ["ok", "ok", "open", "ok", "open", "open", "open", "ok", "open"]
    assert states(browser, 0) == made
    browser.before_page(None)
    assert browser.open(page(tmp_path, lambda _data: None)) == "ok"


def test_the_key_that_the_reader_knows_is_compared(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, lambda _data: None))
    typed = (
        "(() => {{ const field = document.getElementById('known'); field.value = {key};"
        " field.dispatchEvent(new Event('input'));"
        " return document.getElementById('known-state').className; }})()"
    )
    vkey = EVENTS[0].head.vkeys.strip()
    assert browser.run(typed.format(key=json.dumps(vkey))) == "ok"
    assert browser.run(typed.format(key=json.dumps(vkey[:-2] + "A="))) == "bad"
    assert browser.run(typed.format(key='""')) == "open"
