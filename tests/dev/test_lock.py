"""The locks on disk, and the extra `dev`: what users do not install, and what the first `./invoke test` does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev import extra, lock
from mapanything.environment import requirement_lines
from mapanything.errors import InputError


def packages(name: str) -> set[str]:
    return {re.split(r"[=\[ ]", line)[0] for line in requirement_lines(lock.FOLDER / name)}


@pytest.mark.parametrize("variant", lock.VARIANTS)
def test_the_extra_holds_what_users_do_not_install(variant: str) -> None:
    users, extra = packages(f"{variant}.txt"), packages("dev.txt")
    assert not users & extra
    assert packages("dev.in") <= users | extra and packages("base.in") <= users
    assert {"pytest", "hypothesis", "ruff", "pyright"} <= extra


def test_every_locked_package_has_hashes() -> None:
    for name in lock.LOCKS:
        text = (lock.FOLDER / f"{name}.txt").read_text()
        blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
        assert len(blocks) > 5 and all("==" in block and "--hash=sha256:" in block for block in blocks)


def test_a_lock_without_the_packages_of_another() -> None:
    mine = "a==1 \\\n    --hash=sha256:0\nb-c==2 \\\n    --hash=sha256:1\n    --hash=sha256:2\n"
    assert lock.without(mine, "a==3 \\\n    --hash=sha256:9\n") == mine[mine.index("b-c") :]


@pytest.fixture
def installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of pip in an environment without the extra."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(extra, "INSTALLED", tmp_path / "dev.txt")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_it_is_installed_once_and_with_hashes(installs: list[list[str]]) -> None:
    assert extra.main() == extra.main() == 0
    assert len(installs) == 1 and "--require-hashes" in installs[0] and installs[0][-1] == str(extra.LOCK)
    extra.INSTALLED.write_text("an older lock")
    assert extra.main() == 0 and len(installs) == 2


def test_what_cannot_be_installed_is_one_line(installs: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    with pytest.raises(InputError, match="is no virtual environment"):
        extra.main()
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="docker compose run --rm test` has them"):
        extra.main()
    assert not installs and not list(Path(sys.prefix).iterdir())  # it may not even be writable
