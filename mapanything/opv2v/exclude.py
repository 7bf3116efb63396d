"""Agent-frames that training skips: a text file, one `split/scenario[/agent[/frame]]  # reason` a line.

`./invoke check-data --write-exclude FILE` writes one, the datasets take it, and a person may write or edit one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mapanything.errors import InputError
from mapanything.files import write_atomic
from mapanything.opv2v.layout import SPLITS, FrameKey

HEADER = "# written by check-data: the next --write-exclude to this file replaces it"
_ALIASES = {"test_culvercity": "test_culver_city"}  # the docs' name and the archive's: the same data


@dataclass(frozen=True, slots=True)
class Excluded:
    """Excluded names: tuples of (split, scenario[, agent[, frame]])."""

    entries: frozenset[tuple[str, ...]] = frozenset()

    def contains(self, key: FrameKey) -> bool:
        """True if the agent-frame is excluded, by itself or with its agent or scenario."""
        if not self.entries:
            return False
        parts = (_ALIASES.get(key.split, key.split), key.scenario, key.agent, key.frame)
        return parts[:2] in self.entries or parts[:3] in self.entries or parts in self.entries

    def __len__(self) -> int:
        return len(self.entries)


def read_exclude(path: Path) -> Excluded:
    """Reads an exclude file.

    Raises:
        InputError: missing, no text, or a bad line; names file:line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give the exclude file's name") from error
    entries = set()
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: is no UTF-8 text; is this an exclude file?") from error
        name = re.sub(r"(^|\s)#.*", "", line.rstrip("\r")).strip()
        if name:
            entries.add(_parse(name, f"{path}:{number}"))
    return Excluded(frozenset(entries))


def _parse(name: str, place: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if not 2 <= len(parts) <= 4 or any(part.strip() in ("", ".", "..") or "\\" in part for part in parts):
        raise InputError(f"{place}: {name[:80]!r} is no split/scenario[/agent[/frame]]; correct the line")
    if parts[0] not in SPLITS:
        raise InputError(f"{place}: {parts[0][:40]!r} is no split; correct the line, it may be {', '.join(SPLITS[:4])}")
    if len(parts) == 4 and not re.fullmatch(r"[0-9]+", parts[3]):
        raise InputError(f"{place}: {parts[3][:40]!r} is no frame number such as 000069; correct the line")
    return (_ALIASES.get(parts[0], parts[0]), *parts[1:])


def check_replaceable(path: Path) -> None:
    """Raises InputError where `path` is something that a person wrote: it must not be replaced."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; name another file") from error
    if head and head != HEADER.encode():
        raise InputError(f"{path}: exists and was not written by check-data; name another file or remove it")


def write_exclude(path: Path, entries: Iterable[tuple[tuple[str, ...], str]]) -> None:
    """Writes (parts, reason) pairs, whole or not at all; the same pairs give the same bytes."""
    lines = [HEADER]
    for parts, reason in sorted(entries):
        name = "/".join(parts)
        reason = " ".join(reason.split())
        if re.search(r"(^|\s)#|[\n\r\\]", name) or _parse(name, str(path)) is None:
            raise InputError(f"{path}: can't hold the name {name[:80]!r}; rename the folder")
        lines.append(f"{name}  # {reason}" if reason else name)
    write_atomic(path, ("\n".join(lines) + "\n").encode("utf-8"))
