"""The errors of the transparency log library.

Messages name positions, sizes and file names. They never carry the contents of an entry.
"""


class TlogError(Exception):
    """Base of every error that this library raises on bad input."""


class NoteError(TlogError):
    """A signed note or a verifier key is malformed."""


class SignatureError(NoteError):
    """A signed note carries no valid signature of a known key, or an invalid one."""


class CheckpointError(TlogError):
    """The text of a checkpoint is malformed, or it speaks of another log."""


class TileError(TlogError):
    """A tile or an entry bundle is malformed."""


class LeafError(TlogError):
    """An entry does not have the layout of a Sealward leaf."""


class ProofError(TlogError):
    """An inclusion or consistency proof does not lead to the root that it should."""


class ProofFormatError(TlogError):
    """The text of a tlog-proof is malformed."""


class ReceiptError(TlogError):
    """Base: a receipt does not prove what it should."""


class ReceiptFormatError(ReceiptError):
    """The receipt cannot be read."""


class ReceiptSignatureError(ReceiptError):
    """The checkpoint in the receipt is not signed by the expected log."""


class ReceiptInclusionError(ReceiptError):
    """The entry in the receipt is not in the tree that the checkpoint describes."""


class ReceiptBindingError(ReceiptError):
    """The entry is about another request, response, model or outcome."""


class ReceiptEventError(ReceiptError):
    """The entry is about another event."""


class CborError(TlogError):
    """Bytes are not CBOR in its deterministic form, or a value has no such form."""


class CoseError(TlogError):
    """A COSE receipt is malformed, or cannot be made."""


class WitnessFormatError(TlogError):
    """What a log asks of a witness, or what a witness answers, is malformed."""


class PolicyError(TlogError):
    """A policy file is malformed."""


class PolicyUnsatisfiedError(TlogError):
    """A checkpoint does not carry the cosignatures that a policy asks for."""
