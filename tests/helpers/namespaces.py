"""Disks that are full or read-only, as an ordinary user can have them: mounts in a namespace of one's own."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@functools.cache
def _may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True).returncode == 0
    except OSError:
        return False


def run_with(mounts: str, arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` after the shell commands `mounts`, in a mount namespace; skips the test where that can't be had."""
    if not _may_mount():
        pytest.skip("this host lets no user mount anything (unshare -rm)")
    script = f"set -e; {mounts}; exec {shlex.join([sys.executable, *arguments])}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = ["unshare", "-rm", "sh", "-c", script]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def read_only(folder: Path) -> str:
    name = shlex.quote(str(folder))
    return f"mount --bind {name} {name} && mount -o remount,ro,bind {name}"


def small_disk(folder: Path, kib: int) -> str:
    """A disk of so many KiB in the folder's place, gone with the process."""
    return f"mount -t tmpfs -o size={kib}k none {shlex.quote(str(folder))}"


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, no traceback, and one line of an error that has the words in it."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and all(word in errors[0] for word in words), done.stderr
