// Opens and seals objects with AWS's Encryption SDK for JavaScript, without Sealward's code.
//
// Reads a JSON list of jobs from standard input, writes a list of answers; bytes are base64.
//   {"do": "open", "key", "name", "path", "into"}  -> {"size", "suite", "context", "keys"}
//   {"do": "seal", "key", "name", "path", "into", "context", "suite", "frame"} -> {"size"}
// An answer that could not be given is {"error": text}. `path` and `into` are files; both ways go
// through the SDK's streams.
"use strict";
const fs = require("fs");
const { pipeline } = require("stream/promises");
const { buildDecrypt } = require("@aws-crypto/decrypt-node");
const { buildEncrypt } = require("@aws-crypto/encrypt-node");
const { RawAesKeyringNode, RawAesWrappingSuiteIdentifier } = require("@aws-crypto/raw-aes-keyring-node");
const { AlgorithmSuiteIdentifier, CommitmentPolicy } = require("@aws-crypto/material-management-node");

const policy = CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT;
const { decryptUnsignedMessageStream } = buildDecrypt({ commitmentPolicy: policy, maxEncryptedDataKeys: 1 });
const { encryptStream } = buildEncrypt({ commitmentPolicy: policy, maxEncryptedDataKeys: 1 });

function keyring(job) {
  // Memory of its own: the keyring refuses a slice of a shared pool.
  const key = new Uint8Array(32);
  key.set(Buffer.from(job.key, "base64"));
  return new RawAesKeyringNode({
    keyName: job.name,
    keyNamespace: "sealward",
    unencryptedMasterKey: key,
    wrappingSuite: RawAesWrappingSuiteIdentifier.AES256_GCM_IV12_TAG16_NO_PADDING,
  });
}

async function open(job) {
  let header;
  const stream = decryptUnsignedMessageStream(keyring(job));
  stream.once("MessageHeader", (found) => {
    header = found;
  });
  await pipeline(fs.createReadStream(job.path), stream, fs.createWriteStream(job.into));
  return {
    size: fs.statSync(job.into).size,
    suite: header.suiteId,
    context: { ...header.encryptionContext },
    keys: header.encryptedDataKeys.length,
    frame: header.frameLength,
  };
}

async function seal(job) {
  const stream = encryptStream(keyring(job), {
    suiteId: AlgorithmSuiteIdentifier[job.suite],
    encryptionContext: job.context,
    frameLength: job.frame,
  });
  await pipeline(fs.createReadStream(job.path), stream, fs.createWriteStream(job.into));
  return { size: fs.statSync(job.into).size };
}

async function main() {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0, "utf8"))) {
    try {
      answers.push(await (job.do === "open" ? open(job) : seal(job)));
    } catch (error) {
      answers.push({ error: String(error.message) });
    }
  }
  process.stdout.write(JSON.stringify(answers));
}

main();
