"""What a fuzz target is, and how bytes are changed without a coverage tool.

A target reads bytes from outside and may raise the errors that it names, and nothing else. What it
asserts on top of that (one spelling, the same answer as another reader) must hold for all bytes.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target: inputs that were found worth keeping, one a file."""

LONGEST = 4096
"""Bytes of an input; seeds may be longer."""

_MODULES = ("tlog", "wire", "audit", "inference", "seal", "gateway", "people", "client", "keys")
# What tends to hurt: lengths, signs, separators, markers of the formats here.
_TOKENS = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff" * 8, b"\x00" * 8, b"\n", b"\n\n", b" ", b"-1",
    b"0", b"9" * 20, b"9" * 5000, b"+", b"=", b"==", b"{", b"}", b"[", b"]" * 3, b"[" * 2000,
    b"null", b"true", b"NaN", b"1e999", b"\\ud800", b'""', b"\xed\xa0\x80", b"\xe2\x80\x94 ",
    b"\x0a\x00", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b\x0c", b"\xc2\xa0",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One decoder. `make_seeds` gives inputs that it takes; `rounds` is how often it is tried."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    make_seeds: Callable[[], Sequence[bytes]]
    rounds: int

    @cached_property
    def seeds(self) -> list[bytes]:
        """Inputs that the target takes."""
        return list(self.make_seeds())

    @property
    def kept(self) -> list[bytes]:
        """The committed inputs, whatever the target makes of them."""
        folder = CORPUS / self.name
        return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []

    def try_one(self, data: bytes) -> bool:
        """Run the target; return whether it took the input. Everything else is a finding."""
        try:
            self.run(data)
        except self.errors:
            return False
        return True


TARGETS: dict[str, Target] = {}


def target(
    *errors: type[Exception], seeds: Callable[[], Sequence[bytes]], rounds: int = 300
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register a function as a target under its name, with `-` for each `_`."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = run.__name__.replace("_", "-")
        assert name not in TARGETS
        TARGETS[name] = Target(name, run, errors, seeds, rounds)
        return run

    return register


def load() -> dict[str, Target]:
    """Import every module of targets and return them by name."""
    for module in _MODULES:
        importlib.import_module(f"tests.fuzz.targets.{module}")
    return TARGETS


def mutations(seeds: Sequence[bytes], rounds: int, seed: str) -> Iterator[bytes]:
    """Yield inputs near the seeds: the same ones for the same seed, on every machine."""
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    pool = list(seeds)
    for _ in range(rounds):
        data = bytearray(dice.choice(pool))
        for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
            _mutate(data, dice, pool)
        yield bytes(data[: max(LONGEST, len(data) // 2)])


def _mutate(data: bytearray, dice: random.Random, pool: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.choice((1, 1, 2, 4, 8, 32, 256)))
    match dice.randrange(10):
        case 0 if data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        case 1 if data:
            data[at % len(data)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = dice.randbytes(end - at)
        case 4:
            data[at:at] = dice.choice(_TOKENS)
        case 5:
            data[at:end] = dice.choice(_TOKENS)
        case 6:
            data[at:at] = data[at:end] * dice.choice((1, 2, 40))
        case 7:
            del data[at:]
        case 8:
            other = dice.choice(pool)
            begin = dice.randrange(len(other) + 1)
            data[at:end] = other[begin : begin + dice.choice((1, 8, 64, 1024))]
        case _:
            width = dice.choice((1, 2, 4, 8))
            number = dice.choice((0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, end))
            order = dice.choice(("big", "little"))
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)
