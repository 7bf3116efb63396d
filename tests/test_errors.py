"""Ends of a command line: one line and a code for what the user or the machine did, a traceback for our own bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(body: str) -> subprocess.CompletedProcess[str]:
    script = f"from mapanything.errors import run_command\ndef main():\n    {body}\nrun_command(main)"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def test_what_the_system_refuses_is_one_line() -> None:
    done = run("open('/proc/none/file')")
    assert (done.returncode, done.stderr) == (2, "error: /proc/none/file: No such file or directory\n")


@pytest.mark.parametrize("body", ["raise OSError('a bug')", "[][0]"])
def test_a_bug_keeps_its_traceback(body: str) -> None:
    done = run(body)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")


def test_names_that_are_no_text_can_be_printed() -> None:
    done = run(r"print('d\udcfcr')")
    assert (done.returncode, done.stdout) == (0, "d\\udcfcr\n")


def test_names_do_not_control_the_terminal() -> None:
    told = r"print('a\x1b[31m\x07\x9b2J \u4e2d\u6587 \U0001f697'); from mapanything.errors import InputError; "
    done = run(told + r"raise InputError('\x1b]0;x\x07')")
    assert done.stdout == "a\\x1b[31m\\x07\\x9b2J 中文 🚗\n"
    assert done.stderr == "error: \\x1b]0;x\\x07\n"


@pytest.mark.parametrize(
    "shell",
    [{"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {"MATPLOTLIBRC": "rc"}],
    ids=["a notebook's backend", "LaTeX for every text"],
)
def test_matplotlib_is_ours_whatever_the_shell_says(tmp_path: Path, shell: dict[str, str]) -> None:
    (tmp_path / "rc").write_text("text.usetex: True\n")
    script = "from mapanything.errors import run_command\ndef main():\n"
    script += " import matplotlib; print(matplotlib.rcParams['text.usetex'])\nrun_command(main)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | shell
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
