"""C2SP tlog-tiles logs: hashing, proofs, signed checkpoints, receipts and their verification.

Everything here is pure: bytes in, bytes or an error out. The modules import the standard library
and `cryptography` alone, so that an auditor can read and run them without the rest of Sealward.

- `merkle`: RFC 6962 hashing, proofs, and the tree that is kept in memory
- `note`, `checkpoint`: signed notes and the tree heads in them
- `tiles`: names and contents of tiles and entry bundles
- `leaf`: what an entry of our log looks like
- `proof`, `receipt`: tlog-proof, and the receipt that leaves with an answer
- `cose`, `cbor`: the same proof as a COSE receipt (RFC 9942)
- `cosignature`, `witness`, `policy`: what witnesses sign, how they are asked, whose word counts
- `logdir`: verifies a whole log
"""
