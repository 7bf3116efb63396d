"""The demo on a data set that is there: all steps pass, after a demo on another one in the same folder too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mapanything.tools.demo import data_steps

ROOT = Path(__file__).parents[2]


def test_demo_on_a_given_root(sample_root, tmp_path):
    command = [sys.executable, "-m", "mapanything.tools.demo", "--root", sample_root, "--output", tmp_path / "demo", "--short"]
    done = subprocess.run([*map(str, command), "--jobs", "2"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "together" in done.stdout and (tmp_path / "demo/check.json").exists()
    assert "they show that it can be learnt" in done.stdout  # one timestamp for training and measuring
    table = (tmp_path / "demo" / "evaluation" / "summary.md").read_text()
    assert all(f"| stage{number} |" in table for number in (1, 2, 3))
    for line in done.stdout.splitlines():
        if line.endswith((".png", "check.json")):
            assert (ROOT / line.split()[-1]).exists()


def test_depth_of_two_roots_is_kept_apart(tmp_path):
    first, second = (data_steps(tmp_path, tmp_path / name, ())[0].result for name in ("a", "b"))
    assert first != second and first == data_steps(tmp_path, tmp_path / "a", ())[0].result
