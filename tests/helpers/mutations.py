"""Valid files, broken in a seeded way: the same name and number always give the same bytes."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence

EDGE = 600  # bytes at both ends of a file, where headers and tables of contents lie: half of all places
NUMBERS = [
    b"0",
    b"-1",
    b"1",
    b"3",
    b"1e999",
    b"-1e308",
    b"1e-400",
    b"NaN",
    b".nan",
    b"Infinity",
    b"4294967296",
    b"99999999",
    b"1" + b"0" * 400,
    b"9" * 5000,
    b"0x7f",
    b"1_0",
    b"007",
]
WORDS = [b"null", b'"x"', b"[]", b"{}", b"true", b"~", b'""', b"[[1]]", b"\xff\xfe", b"\0", b"..", b"/", b"[" * 3000]
WHOLE = [struct.pack("<I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)] + [struct.pack("<q", -1)]


def mutated(name: str, number: int, originals: Sequence[bytes]) -> bytes:
    """One of the originals after one to three changes."""
    rng = random.Random(f"{name} {number}")
    data = rng.choice(originals)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(CHANGES)(rng, data, originals)
    return data


def _place(rng: random.Random, data: bytes) -> int:
    at = rng.randrange(max(1, len(data)))
    if rng.random() < 0.5:
        edge = min(len(data), EDGE)
        at = rng.randrange(max(1, edge)) if rng.random() < 0.5 else len(data) - rng.randrange(max(1, edge)) - 1
    return max(0, at)


def _length(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 8, rng.randrange(1, 200)))


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else data


def _overwrite(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at, new = _place(rng, data), rng.choice((rng.randbytes(_length(rng)), rng.choice(WHOLE)))
    return data[:at] + new + data[at + len(new) :]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice((rng.randbytes(_length(rng)), rng.choice(WORDS), b"\n", b" ")) + data[at:]


def _delete(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + _length(rng) :]


def _duplicate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at, length = _place(rng, data), _length(rng)
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def _truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: _place(rng, data)]


def _splice(rng: random.Random, data: bytes, originals: Sequence[bytes]) -> bytes:
    other = rng.choice(originals)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _number(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Replaces a written number by another one, or by something else."""
    found = list(re.finditer(rb"-?\d[\d.eE+-]*", data[:20_000]))
    if not found:
        return _flip(rng, data, ())
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(rng.choice((NUMBERS, WORDS))) + data[chosen.end() :]


CHANGES = (_flip, _overwrite, _insert, _delete, _duplicate, _truncate, _splice, _number, _number)
