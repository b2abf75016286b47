"""What a patient reference looks like: one rule for who takes it and for who looks it up."""

from __future__ import annotations

import re

_FORM = re.compile(r"[\x21-\x7e]{1,128}")

DESCRIPTION = "1 to 128 printable ASCII characters without spaces"


def is_reference(text: str) -> bool:
    """Tell whether a call could have named this patient."""
    return _FORM.fullmatch(text) is not None
