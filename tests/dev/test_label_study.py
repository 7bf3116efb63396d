"""The study's arithmetic on planted figures: units, pairs, intervals, the blind constant."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from dev import label_study
from dev.label_study import FIGURES, Study


def planted(path: Path, errors: dict[str, float]) -> Path:
    """Four scenarios of two scenes, two seeds: AbsRel is the kind's error and the scenario's, and noise that cancels."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["model", "scenario", *FIGURES])
        writer.writeheader()
        for kind, error in errors.items():
            for scenario in range(4):
                for seed, noise in ((0, 0.01), (1, -0.01)):
                    for wobble in (0.02, -0.02):
                        value = error + scenario + noise + wobble
                        writer.writerow(
                            {"model": f"{kind}_{seed}", "scenario": f"s{scenario}", **dict.fromkeys(FIGURES, value)}
                        )
    return path


def test_scenes_and_seeds_are_averaged_before_scenarios_are_compared(tmp_path: Path) -> None:
    results = label_study.by_scenario(planted(tmp_path / "metrics.csv", {"plain": 0.5, "visible": 0.3}))
    assert results["visible"]["depth_abs_rel"] == pytest.approx({f"s{n}": 0.3 + n for n in range(4)})
    lines, numbers = label_study.table(results)
    visible = numbers["visible"]["depth_abs_rel"]
    assert visible["mean"] == pytest.approx(1.8)
    # Scenarios differ by whole units, but the pairs by 0.2 exactly: a paired interval has no width.
    assert [visible[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([-0.2] * 3)
    assert visible["high"] - visible["low"] > 0.5
    assert len(lines) == 4 and lines[3].startswith("| visible |")


def test_the_blind_constant_is_the_median_of_the_training_maps(tmp_path: Path) -> None:
    study = Study(tmp_path, 3, 1, 1, (84, 56), ("plain",), 1, "cpu")
    for split, depths in {"train": (10.0, 20.0, 40.0), "test": (25.0,)}.items():
        for number, depth in enumerate(depths):
            folder = study.depth("rendered") / split / f"s{number}" / "1"
            folder.mkdir(parents=True)
            for camera in range(4):
                values = np.full((2, 3), depth, np.float32)
                values[0, 0] = 0  # unknown, everywhere: no constant there
                np.save(folder / f"000001_camera{camera}_depth.npy", values)
    figures = label_study.blind(study)
    assert figures["depth_abs_rel"] == {"s0": pytest.approx(0.2)}  # |20 - 25| / 25
    assert figures["depth_rmse_m"] == {"s0": pytest.approx(5.0)}
    assert figures["depth_delta_1_25"] == {"s0": 0.0}  # 25 / 20 is 1.25: not below it
