"""Thousands of broken files through every parser: a sound value or a refusal in one line; no crash, no hang, no flood.

`./invoke test` takes a few of each kind, `./invoke test --faults` 10,000. One that fails is made again with
`mutations.mutated(PARSER, NUMBER, originals)`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.helpers.mutations import mutated
from tests.helpers.parsers import PARSERS

pytestmark = pytest.mark.faults
REPOSITORY = Path(__file__).parents[2]
FEW = 60


def read_broken(names: Iterable[str], count: int, folder: Path) -> None:
    """`count` broken files through each of the parsers, in another process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.worker", ",".join(names), str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    place = (folder / "place").read_text().split("\n")[0] if (folder / "place").exists() else "no input"
    assert done.returncode == 0, f"{place} ended the process ({done.returncode}):\n{done.stderr[-4000:]}"
    for result in map(json.loads, done.stdout.splitlines()):
        print(f"{result['parser']}: {result['taken']} taken, {result['refused']} refused")
        assert not result["failures"], f"{result['parser']}: " + "\n".join(result["failures"])
        assert result["taken"] + result["refused"] == count


def test_a_few_of_each_kind(tmp_path: Path) -> None:
    read_broken(PARSERS, FEW, tmp_path)


@pytest.mark.faults(long=True)
@pytest.mark.parametrize("name", PARSERS)
def test_many_of_one_kind(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    read_broken([name], int(request.config.getoption("--faults") or 0), tmp_path)


def test_the_same_number_gives_the_same_bytes() -> None:
    originals = [b"a 1 b 2.5 c", bytes(range(256))]
    made = [mutated("x", number, originals) for number in range(300)]
    assert made == [mutated("x", number, originals) for number in range(300)]
    assert len(set(made)) > 250
