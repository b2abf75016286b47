"""Keeps out of a service's process what its libraries load on the off chance. Import it first.

Every service loads the same libraries at start, and on a small machine that load is most of the
time to the first answer. Two parts of it are never used here:

- structlog loads `rich` when it is installed, for coloured tracebacks; our logs are lines of JSON
  and have no tracebacks. None in `sys.modules` makes the import fail, which structlog expects
  (https://docs.python.org/3/reference/import.html#the-module-cache).
- pydantic looks through all installed distributions for plugins; code that nobody asked for has no
  business in a process that holds keys.
"""

from __future__ import annotations

import os
import sys

sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
