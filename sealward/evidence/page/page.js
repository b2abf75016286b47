"use strict";
(() => {
  // States of a step. "open" is never green: it says that the step was not made here.
  const OK = "ok", BAD = "bad", OPEN = "open";
  const WORDS = { ok: "holds", bad: "FAILED", open: "not checked here" };
  const MARKS = { ok: "✓", bad: "✗", open: "?" };
  const PREFIX = 49, SALT = 32, DASH = "— ";
  const OUTCOMES = { ok: 0, denied: 1, failed: 2 };
  const subtle = globalThis.crypto && globalThis.crypto.subtle;

  class Wrong extends Error {}
  class NotHere extends Error {}

  const need = (condition, message) => { if (!condition) throw new Wrong(message); };
  const utf8 = (text) => new TextEncoder().encode(text);
  const text = (bytes) => {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch (error) {
      throw new Wrong("it is not UTF-8");
    }
  };
  const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  const same = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);
  const joined = (...parts) => {
    const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
    let at = 0;
    for (const part of parts) { all.set(part, at); at += part.length; }
    return all;
  };

  // Base64 with one spelling: what does not encode back to itself is refused.
  function base64(encoded) {
    let raw;
    try { raw = atob(encoded); } catch (error) { throw new Wrong("it is not base64"); }
    need(btoa(raw) === encoded, "its base64 is not canonical");
    return Uint8Array.from(raw, (c) => c.charCodeAt(0));
  }

  function decimal(digits) {
    need(/^(0|[1-9][0-9]{0,18})$/.test(digits), "a number is malformed");
    return BigInt(digits);
  }

  function bytesOfHex(digits, size) {
    need(new RegExp(`^[0-9a-f]{${2 * size}}$`).test(digits), "hex digits are malformed");
    return Uint8Array.from(digits.match(/../g), (pair) => parseInt(pair, 16));
  }

  async function sha256(...parts) {
    if (!subtle) throw new NotHere("this browser offers no WebCrypto here");
    return new Uint8Array(await subtle.digest("SHA-256", joined(...parts)));
  }

  // --- C2SP signed-note, tlog-checkpoint, tlog-proof ---------------------------------------------

  async function readKey(line) {
    const first = line.indexOf("+"), second = line.indexOf("+", first + 1);
    need(first > 0 && second === first + 9, "the verifier key is malformed");
    const name = line.slice(0, first), id = line.slice(first + 1, second);
    const material = base64(line.slice(second + 1));
    need(material.length === 33 && material[0] === 1, "the verifier key is not an Ed25519 key");
    const computed = hex((await sha256(utf8(name), utf8("\n"), material)).slice(0, 4));
    need(computed === id, "the verifier key does not match its id");
    return { name, id, key: material.slice(1) };
  }

  function readNote(note) {
    const cut = note.lastIndexOf("\n\n");
    need(cut >= 0 && note.endsWith("\n"), "the checkpoint is no signed note");
    const lines = note.slice(cut + 2, -1).split("\n");
    return {
      body: note.slice(0, cut + 1),
      signatures: lines.map((line) => {
        need(line.startsWith(DASH), "a signature line is malformed");
        const rest = line.slice(DASH.length), space = rest.indexOf(" ");
        need(space > 0, "a signature line is malformed");
        const material = base64(rest.slice(space + 1));
        need(material.length > 4, "a signature is too short");
        return { name: rest.slice(0, space), id: hex(material.slice(0, 4)), signature: material.slice(4) };
      }),
    };
  }

  function readCheckpoint(body) {
    const lines = body.split("\n");
    need(lines.length >= 4 && lines[lines.length - 1] === "" && lines.slice(0, -1).every(Boolean),
      "the checkpoint is malformed");
    const root = base64(lines[2]);
    need(root.length === 32, "the root is not 32 bytes long");
    return { origin: lines[0], size: decimal(lines[1]), root };
  }

  function readProof(proof) {
    const cut = proof.indexOf("\n\n");
    need(cut > 0, "the receipt is malformed");
    const lines = proof.slice(0, cut).split("\n");
    need(lines.shift() === "c2sp.org/tlog-proof@v1", "the receipt is not a tlog-proof");
    need(lines.length > 1 && lines[0].startsWith("extra ") && lines[1].startsWith("index "),
      "the receipt carries no entry or no index");
    const extra = base64(lines[0].slice(6));
    need(extra.length > SALT + PREFIX, "the receipt carries no entry");
    const path = lines.slice(2).map(base64);
    need(path.length <= 63 && path.every((node) => node.length === 32), "the path is malformed");
    return {
      salt: extra.slice(0, SALT), leaf: extra.slice(SALT), index: decimal(lines[1].slice(6)), path,
      checkpoint: proof.slice(cut + 2),
    };
  }

  async function holds(key, signature, message) {
    let imported;
    try {
      imported = await subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
    } catch (error) {
      throw new NotHere("this browser's WebCrypto has no Ed25519, or takes no such key");
    }
    return subtle.verify({ name: "Ed25519" }, imported, signature, message);
  }

  // RFC 9162, 2.1.3.2.
  async function fold(leaf, index, size, path) {
    need(index < size, "the index is outside of the tree");
    let first = index, last = size - 1n, node = leaf;
    for (const sibling of path) {
      need(last !== 0n, "the path is too long");
      if (first & 1n || first === last) {
        node = await sha256(Uint8Array.of(1), sibling, node);
        while (!(first & 1n) && first !== 0n) { first >>= 1n; last >>= 1n; }
      } else {
        node = await sha256(Uint8Array.of(1), node, sibling);
      }
      first >>= 1n;
      last >>= 1n;
    }
    need(last === 0n, "the path is too short");
    return node;
  }

  // --- what is shown -----------------------------------------------------------------------------

  function element(parent, tag, content, className) {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content;
    if (className) made.className = className;
    parent.append(made);
    return made;
  }

  class Steps {
    constructor(list) { this.list = list; this.states = []; }

    // Makes one step. `action` returns what is to be shown, or [what, value for the next steps].
    async make(title, action) {
      let state = OK, shown = "", value;
      try {
        const result = await action();
        [shown, value] = Array.isArray(result) ? result : [result, undefined];
      } catch (error) {
        state = error instanceof NotHere ? OPEN : BAD;
        shown = error instanceof Wrong || error instanceof NotHere ? error.message : "it cannot be computed";
      }
      this.states.push(state);
      const item = element(this.list, "li");
      item.dataset.state = state;
      element(item, "span", `${MARKS[state]} ${WORDS[state]}`, `state ${state}`);
      element(item, "span", title);
      if (shown) element(item, "span", shown, "shown");
      return value;
    }

    // The value of an earlier step. A step that stands on one that failed fails as well, and one
    // that stands on one that was not made here cannot be made either.
    given(value) {
      if (value === undefined && !this.states.includes(BAD)) throw new NotHere("an earlier step was not checked here");
      need(value !== undefined, "an earlier step does not hold");
      return value;
    }

    get state() {
      return this.states.includes(BAD) || !this.states.length ? BAD : this.states.includes(OPEN) ? OPEN : OK;
    }
  }

  const verified = new Map();
  // Many events share a checkpoint: each signature is verified once.
  async function verifyNote(note, keys) {
    const known = verified.get(note);
    if (known) return known;
    const found = (async () => {
      const { body, signatures } = readNote(note);
      const checkpoint = readCheckpoint(body);
      let signed = "";
      for (const line of signatures) {
        const key = keys.find((k) => k.name === line.name && k.id === line.id);
        if (!key) continue;
        need(line.signature.length === 64 && await holds(key.key, line.signature, utf8(body)),
          "the signature does not hold");
        if (key.name === checkpoint.origin) signed = `${key.name}+${key.id}`;
      }
      need(signed, "it is not signed by the log that it names");
      return signed;
    })();
    verified.set(note, found);
    return found;
  }

  async function checkEvent(entry, keys, parent) {
    // Built aside and shown when it is done: nothing is laid out twice.
    const box = document.createElement("details");
    const summary = element(box, "summary", entry.id);
    const steps = new Steps(element(box, "ol"));
    const opened = {};
    const given = (value) => steps.given(value);
    const proof = await steps.make("The receipt reads as a C2SP tlog-proof.", () => {
      const read = readProof(text(base64(entry.proof)));
      return [`entry ${read.index}, ${read.path.length} hashes on its path`, read];
    });
    const checkpoint = await steps.make("The checkpoint reads as one of a log.", () => {
      const read = readCheckpoint(readNote(given(proof).checkpoint).body);
      return [`${read.origin}\n${read.size} entries\nroot ${hex(read.root)}`, read];
    });
    await steps.make("The log's key signed the checkpoint (Ed25519).", async () => {
      need(keys.state !== BAD, "a verifier key is malformed");
      if (keys.state === OPEN) throw new NotHere("a verifier key was not checked here");
      return verifyNote(given(proof).checkpoint, keys.list);
    });
    await steps.make("The entry has the layout of an audit entry, and is this event's.", () => {
      const { leaf } = given(proof);
      need(leaf[0] === 1, "the entry is of an unknown version");
      need(hex(leaf.slice(1, 17)) === entry.id.replaceAll("-", ""), "the entry is another event's");
      return `event id ${entry.id}\nbinding ${hex(leaf.slice(17, PREFIX))}\nsealed content, ${leaf.length - PREFIX} bytes`;
    });
    const leafHash = await steps.make("The entry's hash: SHA-256(0x00 ‖ entry).", async () => {
      const hash = await sha256(Uint8Array.of(0), given(proof).leaf);
      return [hex(hash), hash];
    });
    const root = await steps.make("The path leads from it to a root (RFC 6962).", async () => {
      const found = await fold(given(leafHash), given(proof).index, given(checkpoint).size, proof.path);
      return [hex(found), found];
    });
    await steps.make("That root is the one in the checkpoint.", () => {
      need(same(given(root), given(checkpoint).root), "it is another root");
      return "";
    });
    await steps.make("The opened content names this event, this log and this place.", () => {
      Object.assign(opened, JSON.parse(text(base64(entry.opened))));
      need(opened.event_id === entry.id, "it names another event");
      need(opened.log === given(checkpoint).origin, "it names another log");
      need(String(opened.log_index) === String(given(proof).index), "it names another place");
      const said = (opened.span.attributes["sealward.event.id"] || entry.id).replaceAll("-", "");
      need(said === entry.id.replaceAll("-", ""), "its span is another event's");
      return "";
    });
    if (entry.call) await checkBinding(entry.call, proof, opened, steps);
    const attributes = (opened.span && opened.span.attributes) || {};
    summary.textContent = `${MARKS[steps.state]} ${(opened.span && opened.span.start) || ""} ${attributes["sealward.event.type"] || ""} ${attributes["sealward.outcome"] || ""} · ${entry.id}`;
    summary.className = steps.state;
    box.dataset.state = steps.state;
    box.open = steps.state !== OK;
    showOpened(box, opened, attributes, entry.call, steps.state);
    parent.append(box);
    return steps.state;
  }

  async function checkBinding(call, proof, opened, steps) {
    await steps.make("The entry is about this request, this response, this model and this outcome.", async () => {
      const attributes = opened.span.attributes;
      const outcome = OUTCOMES[attributes["sealward.outcome"]];
      need(outcome !== undefined, "the content has no outcome");
      const model = attributes["sealward.model.digest"] || "0".repeat(64);
      const computed = await sha256(
        utf8("sealward/binding/v1\n"), steps.given(proof).salt, bytesOfHex(call.request, 32),
        bytesOfHex(call.response, 32), bytesOfHex(model, 32), Uint8Array.of(outcome));
      need(same(computed, proof.leaf.slice(17, PREFIX)), "the binding is another one");
      return `SHA-256 of the request ${call.request}\nSHA-256 of the response ${call.response}\nmodel ${model}`;
    });
  }

  function showOpened(box, opened, attributes, call, state) {
    element(box, "h3", "Opened content");
    element(box, "p", call && state === OK
      ? "Outcome and model digest are proven by the last step. The rest is the operator's word."
      : state === BAD ? "Proven by nothing: a step does not hold."
        : "By the operator's word: see the end of this page.", "word");
    const table = element(box, "table");
    const row = (name, value) => {
      const line = element(table, "tr");
      element(line, "th", name);
      element(line, "td", Array.isArray(value) ? value.join(", ") : String(value));
    };
    if (opened.span) {
      for (const name of ["start", "end", "trace_id", "span_id", "parent_span_id"])
        if (opened.span[name]) row(name, opened.span[name]);
      for (const name of Object.keys(attributes).sort()) row(name, attributes[name]);
    }
    if (!call) return;
    for (const part of ["request", "response"]) {
      const line = element(box, "p", `Compare a file with the ${part}: `);
      const input = element(line, "input");
      input.type = "file";
      const state = element(line, "span", WORDS[OPEN], OPEN);
      input.addEventListener("change", async () => {
        const found = hex(await sha256(new Uint8Array(await input.files[0].arrayBuffer())));
        const held = found === call[part] ? OK : BAD;
        state.textContent = ` ${MARKS[held]} ${WORDS[held]}`;
        state.className = held;
      });
    }
  }

  function conclude(states) {
    const verdict = document.getElementById("verdict");
    const count = (wanted) => states.filter((state) => state === wanted).length;
    const state = !states.length || count(BAD) ? BAD : count(OPEN) ? OPEN : OK;
    verdict.className = state;
    verdict.textContent = {
      ok: `✓ Every step holds for all ${states.length} events.`,
      bad: `✗ FAILED for ${count(BAD)} of ${states.length} events: what is shown is not what the log holds.`,
      open: `? ${count(OPEN)} of ${states.length} events could not be checked in full by this browser. Use another browser, or the tools in README.txt.`,
    }[state];
    document.documentElement.dataset.verdict = state;
  }

  async function run() {
    const states = [];
    try {
      const bundle = JSON.parse(document.getElementById("bundle").textContent);
      const list = document.getElementById("keys"), lines = text(base64(bundle.vkeys)).split("\n").filter(Boolean);
      const keys = [];
      let keyState = lines.length ? OK : BAD;
      for (const line of lines) {
        const item = element(list, "li");
        element(item, "code", line);
        try {
          keys.push(await readKey(line));
        } catch (error) {
          const state = error instanceof NotHere ? OPEN : BAD;
          keyState = keyState === BAD ? BAD : state;
          element(item, "span", ` ${MARKS[state]} ${error.message}`, state);
        }
      }
      const known = document.getElementById("known"), knownState = document.getElementById("known-state");
      known.addEventListener("input", () => {
        const held = lines.length === 1 ? known.value.trim() === lines[0] : lines.includes(known.value.trim());
        const state = !known.value.trim() ? OPEN : held ? OK : BAD;
        knownState.className = state;
        knownState.textContent = { ok: "✓ it is the same", bad: "✗ it is another key", open: "not compared" }[state];
      });
      const parent = document.createElement("div");
      parent.id = "events";
      for (const entry of bundle.events) {
        let state = BAD;
        try {
          state = await checkEvent(entry, { state: keyState, list: keys }, parent);
        } catch (error) {
          element(parent, "p", "✗ an event cannot be read", BAD);
        }
        states.push(state);
      }
      document.getElementById("events").replaceWith(parent);
    } catch (error) {
      states.push(BAD);
    }
    conclude(states);
  }

  run();
})();
