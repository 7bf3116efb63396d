"""Types of arguments, as argparse takes them: a text in, a value out, or one line that says what to give."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole(text: str, least: int = 0) -> int:
    """A whole number from `least` on."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ArgumentTypeError(f"{text!r}: give a number from {least} on")
    return int(text)


def positive(text: str) -> int:
    """1, 2, ..."""
    return whole(text, 1)


def odd(text: str) -> int:
    """1, 3, ... 99 pixels."""
    if not (text.isascii() and text.isdigit() and int(text) < 100 and int(text) % 2):
        raise ArgumentTypeError(f"{text!r}: give an odd number of pixels below 100")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0: any free one."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ArgumentTypeError(f"{text!r}: give a port, 0 to 65535; 0: any free one")
    return int(text)


def length(text: str) -> float:
    """A number above 0, of metres or pixels."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def file_name(*suffixes: str) -> Callable[[str], Path]:
    """The type of a file's name that ends in one of these."""

    def check(text: str) -> Path:
        if Path(text).suffix.lower() not in suffixes:
            raise ArgumentTypeError(f"{text!r}: give a name that ends in {' or '.join(suffixes)}")
        return Path(text)

    return check


def names_of(kind: str, known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """The type of names with commas between them, each one that is known."""

    def check(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        for name in names:
            if name not in known:
                raise ArgumentTypeError(f"'{name}' is no {kind}; there are {', '.join(known)}")
        return names

    return check
