"""What unlocks the keystore: a secret in a file or from the terminal, or a key in a token."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.seal.errors import UnlockError
from sealward.seal.rootkey import UnlockSecret
from services.keys.files import read_private
from services.keys.keystore import Unlock
from services.keys.settings import KeysSettings

Ask = Callable[[str], str]


def unlock_of(settings: KeysSettings) -> Callable[[bool], Unlock]:
    """Return what unlocks by the settings; its argument says whether a keystore is created."""
    hsm = settings.hsm()
    if hsm is not None:
        return lambda _creating: hsm
    return unlock_source(settings.unlock_file)


def unlock_from_file(path: Path) -> UnlockSecret:
    """Read the unlock secret from a file (ours or root's, mode 0600); raise StartupError."""
    try:
        data = read_private(path, frozenset({0, os.geteuid()}))
        return UnlockSecret(data.decode("utf-8"))
    except FileNotFoundError:
        raise StartupError(f"the unlock file {path} does not exist") from None
    except UnicodeDecodeError:
        raise StartupError(f"the unlock file {path} is not UTF-8 text") from None
    except UnlockError as error:
        raise StartupError(f"the unlock file {path}: {error}") from None


def unlock_from_terminal(*, creating: bool, ask: Ask = getpass.getpass) -> UnlockSecret:
    """Ask for the passphrase, twice when a keystore is created; raise StartupError."""
    try:
        text = ask("Unlock secret of the keystore: ")
        if creating and ask("The same again: ") != text:
            raise StartupError("the two entries differ")
        return UnlockSecret(text)
    except (EOFError, KeyboardInterrupt):
        raise StartupError("no unlock secret was given") from None
    except UnlockError as error:
        raise StartupError(str(error)) from None


def unlock_source(path: Path | None) -> Callable[[bool], UnlockSecret]:
    """Return what gives the unlock secret; its argument says whether a keystore is created."""

    def source(creating: bool) -> UnlockSecret:
        if path is not None:
            return unlock_from_file(path)
        if sys.stdin is None or not sys.stdin.isatty():
            raise StartupError(
                "no unlock secret: set SEALWARD_KEYS_UNLOCK_FILE, or start at a terminal"
            )
        return unlock_from_terminal(creating=creating)

    return source
