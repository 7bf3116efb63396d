"""Processes in /proc, which may end at any moment."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    """Children that the first thread of `pid` has started; none when it has ended."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def command_line(pid: int) -> bytes:
    """Arguments, each ended by a zero; empty when the process has ended."""
    return _read(pid, "cmdline")


def variables(pid: int) -> bytes:
    """The environment it was started with, each NAME=VALUE ended by a zero; empty when the process has ended."""
    return _read(pid, "environ")


def is_running(pid: int) -> bool:
    """Not ended, nor ended and not yet waited for."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"], [b"X"])


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
