"""Predictions whose receipt is verified before they are returned.

    with Client.from_profile("sealward-data/clients/alice") as client:
        result = client.infer("breast-cancer", rows)

`AsyncClient` is the same for asyncio, `attach` gives the same to a stock tritonclient. The stubs of
the Open Inference Protocol are imported when they are first needed, because two copies of them
cannot live in one process; `attach` does not import them at all.
"""

from sealward.client.aio import AsyncClient
from sealward.client.attach import Attachment, attach
from sealward.client.client import Client
from sealward.client.core import Checkpoint, InferResult, ModelInfo, Session, TensorInfo
from sealward.client.cosigned import CosignedReceipt
from sealward.client.errors import (
    CallError,
    ClientError,
    ConsistencyUnavailableError,
    DeniedError,
    ForkError,
    InvalidRequestError,
    MissingReceiptError,
    NotLoggedInError,
    ProfileError,
    TrustError,
    UnavailableError,
    WrongReceiptError,
)
from sealward.client.profile import Profile

__all__ = [
    "AsyncClient",
    "Attachment",
    "CallError",
    "Checkpoint",
    "Client",
    "ClientError",
    "ConsistencyUnavailableError",
    "CosignedReceipt",
    "DeniedError",
    "ForkError",
    "InferResult",
    "InvalidRequestError",
    "MissingReceiptError",
    "ModelInfo",
    "NotLoggedInError",
    "Profile",
    "ProfileError",
    "Session",
    "TensorInfo",
    "TrustError",
    "UnavailableError",
    "WrongReceiptError",
    "attach",
]
