"""README.txt of an evidence bundle: how to check it with tools that nobody here wrote."""

from __future__ import annotations

from collections.abc import Sequence

from sealward.evidence.event import Event

_TEXT = """\
Evidence from an audit log
==========================

{count} of the log
  {origins}

index.html checks all of it in a browser, offline. What follows does the same with openssl,
sha256sum and Python's standard library, for the event
  {event}

First, and by hand: compare log.vkey with the verifier key of the log that you know from somewhere
else. Everything below is worth as much as that key.


1. The log signed the checkpoint (c2sp.org/signed-note, Ed25519)
----------------------------------------------------------------
{signature}


2. The hash of the entry (RFC 6962: SHA-256 over a zero byte and the entry)
---------------------------------------------------------------------------
{leaf_hash}


3. The entry is in the tree that the checkpoint describes
---------------------------------------------------------
The receipt has the entry's index and the hashes on its path; the checkpoint has size and root.

{inclusion}

Any program that reads c2sp.org/tlog-proof does steps 1 to 3 from events/*.tlog-proof and log.vkey;
the entry is what follows the first 32 bytes of its `extra` line. With Sealward installed:

  sealward audit verify --vkey log.vkey --receipt events/{event}.tlog-proof


What is proven, and what is not
-------------------------------
Proven: an entry with this event id (its bytes 2 to 17) and this binding (its bytes 18 to 49) stands
at this place in the log and has not changed since the checkpoint was signed.

By the operator's word: the opened content in events/*.json. The log holds it encrypted under a key
that many entries share, so that one text cannot be proven without giving away the others.

The binding is SHA-256("sealward/binding/v1\\n" || salt[32] || SHA-256(request message) ||
SHA-256(response message) || SHA-256(model file) || outcome byte: 0 ok, 1 denied, 2 failed). The
caller has the salt: it is the first 32 bytes of the `extra` line of the receipt that came with the
answer. Here it is zeroes, unless the caller gave it.

Not shown by any proof: that no other event is missing.


Files
-----
{files}
"""


_SIGNATURE = """\
sed '/^$/,$d' {checkpoint} > body
grep -F -- "— {origin} " {checkpoint} | head -n 1 | cut -d' ' -f3 \\
  | base64 -d | tail -c 64 > signature
(printf '\\060\\052\\060\\005\\006\\003\\053\\145\\160\\003\\041\\000'
 grep -F -- "{origin}+" log.vkey | head -n 1 | cut -d+ -f3- \\
  | base64 -d | tail -c 32) > key.der
openssl pkey -pubin -inform DER -in key.der -out key.pem
openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in body -sigfile signature"""

_LEAF_HASH = """\
(printf '\\000'; cat events/{event}.leaf) | sha256sum"""

_INCLUSION = """\
python3 - <<'END'
import base64, hashlib
name = "events/{event}"
head, _, note = open(name + ".tlog-proof", "rb").read().partition(b"\\n\\n")
_, extra, index, *path = head.decode().split("\\n")
leaf = open(name + ".leaf", "rb").read()
assert base64.b64decode(extra[6:])[32:] == leaf and leaf[1:17].hex() == name[7:].replace("-", "")
_, size, root = note.decode().split("\\n")[:3]
first, last = int(index[6:]), int(size) - 1
assert 0 <= first <= last
node = hashlib.sha256(b"\\0" + leaf).digest()
for sibling in map(base64.b64decode, path):
    assert last
    if first % 2 or first == last:
        node = hashlib.sha256(b"\\1" + sibling + node).digest()
        while first % 2 == 0 and first:
            first, last = first // 2, last // 2
    else:
        node = hashlib.sha256(b"\\1" + node + sibling).digest()
    first, last = first // 2, last // 2
assert last == 0 and node == base64.b64decode(root), "the entry is not in the tree"
print("entry", index[6:], "of", size, "holds")
END"""


def steps(events: Sequence[Event], files: Sequence[str]) -> dict[str, str]:
    """Return the shell commands for the first event: signature, leaf_hash, inclusion."""
    first = events[0]
    checkpoints = [name for name in files if name.startswith("checkpoint")]
    ordered = sorted({event.checkpoint for event in events})
    values = {
        "origin": first.origin,
        "event": first.id,
        "checkpoint": checkpoints[ordered.index(first.checkpoint)],
    }
    commands = {"signature": _SIGNATURE, "leaf_hash": _LEAF_HASH, "inclusion": _INCLUSION}
    return {name: command.format(**values) for name, command in commands.items()}


def readme(events: Sequence[Event], files: Sequence[str]) -> str:
    """Return the text for a bundle of these events and files."""
    return _TEXT.format(
        count="1 event" if len(events) == 1 else f"{len(events)} events",
        origins="\n  ".join(dict.fromkeys(event.origin for event in events)),
        event=events[0].id,
        files="\n".join(f"  {name}" for name in sorted([*files, "README.txt", "index.html"])),
        **steps(events, files),
    )
