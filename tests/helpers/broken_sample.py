"""A copy of the sample data set with one agent-frame to break, and the checks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mapanything.opv2v.check.report import Report
from mapanything.opv2v.check.run import CheckOptions, Level, run_checks
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import DepthLayout, FramePaths, scan
from mapanything.opv2v.pcd import read_pcd

LEVELS: tuple[Level, ...] = ("quick", "standard", "deep")


class Sample:
    """A copy of the sample, and one agent-frame of it to break: the one that lists the most vehicles."""

    def __init__(self, root: Path, depth_root: Path) -> None:
        self.root, self.depth = root, DepthLayout(depth_root)
        keys = [folder.key(frame) for folder in scan(root) for frame in folder.frames]
        frames = {key: read_frame(FramePaths(root, key).yaml) for key in keys}
        self.key = max(keys, key=lambda key: len(frames[key].vehicles))
        self.files = FramePaths(root, self.key)
        self.yaml, self.pcd, self.image = self.files.yaml, self.files.pcd, self.files.image(2)
        self.map = self.depth.path(self.key, 2)
        self.agent = self.files.folder
        self.scenario = self.agent.parent
        self.others = sorted(path for path in self.scenario.iterdir() if path.is_dir() and path != self.agent)
        self.frames = frames

    def check(self, level: Level, **options: Any) -> Report:
        options = {"depth": self.depth} | options
        return run_checks(CheckOptions(self.root, level=level, progress=False, **options))

    def edit_yaml(self, change: Callable[[dict[Any, Any]], Any]) -> None:
        data = yaml.load(self.yaml.read_text(), yaml.CSafeLoader)
        change(data)
        self.yaml.write_text(yaml.dump(data, Dumper=yaml.CSafeDumper))

    def edit_points(self, change: Callable[[np.ndarray], Any]) -> None:
        """Writes the cloud anew, as binary."""
        points = read_pcd(self.pcd).points.copy()
        changed = change(points)
        points = points if changed is None else changed
        head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\n" + f"WIDTH {len(points)}\nHEIGHT 1\nDATA binary\n"
        self.pcd.write_bytes(head.encode() + points.astype("<f4").tobytes())

    def edit_depth(self, change: Callable[[np.ndarray], Any]) -> None:
        depth = read_depth(self.map).copy()
        changed = change(depth)
        np.save(self.map, depth if changed is None else changed)


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


def keep(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def set_entry(array: np.ndarray, place: Any, value: float) -> None:
    array[place] = value
