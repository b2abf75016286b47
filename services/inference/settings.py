"""Settings of the inference service, `SEALWARD_INFERENCE_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sealward.kit.settings import ServiceSettings, settings_config

SHIPPED = Path(__file__).resolve().parent / "shipped"


class InferenceSettings(ServiceSettings):
    """What the inference service needs beside the common settings."""

    model_config = settings_config("inference")

    shipped_dir: Path = SHIPPED
    """Folder with the packages that are sealed into the store when it does not have them yet."""
    undeclared_inputs: Literal["drop", "refuse"] = "drop"
    """What becomes of inputs that a model does not declare: dropped unread, or the call refused."""
    batch_calls: int = Field(default=256, ge=1, le=4096)
    """At most this many calls are handled as one batch."""
    batch_bytes: int = Field(default=8 << 20, ge=1 << 16, le=1 << 30)
    """At most this many bytes of requests are handled as one batch."""
