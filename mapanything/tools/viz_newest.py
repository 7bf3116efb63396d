"""`viz` alone: a sheet for what is newest here, a run or a prediction; else for the first frame of the mounted data."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from mapanything.cli.data import IMAGES
from mapanything.cli.pictures import OUTPUTS, VIZ
from mapanything.errors import InputError
from mapanything.opv2v.layout import FrameKey, FramePaths, is_folder
from mapanything.opv2v.png import read_image
from mapanything.pictures.predictions import read_prediction
from mapanything.results.record import RECORD
from mapanything.tools.viz_options import save
from mapanything.tools.viz_predictions import compare
from mapanything.tools.viz_scenes import draw_alone, pose

EXPERIMENTS = Path("experiments")
LOG, PICTURES = "log.txt", "pictures"  # in a run's folder (train/logs.py, which loads torch)


def newest(where: tuple[Path, ...] = (EXPERIMENTS, OUTPUTS)) -> tuple[Path, str] | None:
    """The folder that a run or a prediction last wrote to, and which of both it is; None: there is neither."""
    found = [item for root in where if root.is_dir() for item in _found(root)]
    if not found:
        return None
    _, folder, kind = max(found)
    return folder, kind


def _found(root: Path) -> Iterator[tuple[float, Path, str]]:
    for folder, folders, files in os.walk(root):
        for name, kind in ((RECORD, "prediction"), (LOG, "run")):
            if name in files:
                yield (Path(folder) / name).stat().st_mtime, Path(folder), kind
        if RECORD in files:
            folders.clear()


def draw_newest(args: argparse.Namespace) -> int:
    """Draws it, and says in one line what it drew.

    Raises:
        InputError: there is nothing to draw, or it is damaged.
    """
    found = newest()
    if found is not None and found[1] == "run":
        return _draw_run(args, found[0])
    if found is not None:
        folder = found[0]
        predicted = read_prediction(folder)
        key = FrameKey(predicted.split, predicted.scenario, predicted.agent, predicted.frame)
        has_truth = FramePaths(IMAGES, key).yaml.is_file()  # the linked data may be others
        print(f"newest prediction, {folder}: ", end="", flush=True)
        if has_truth:
            return compare(VIZ.parse(["compare", "--prediction", str(folder)]))
        return draw_alone(VIZ.parse(["cloud", "--prediction", str(folder)]), "cloud", predicted)
    if is_folder(IMAGES):
        print(f"first frame of {IMAGES}: ", end="", flush=True)
        return pose(VIZ.parse(["pose"]))
    raise InputError(
        f"nothing to draw: no run or prediction below {EXPERIMENTS} or {OUTPUTS}, and no data at {IMAGES}; "
        "`./invoke link-data` links them, or give a command (see --help)"
    )


def _draw_run(args: argparse.Namespace, folder: Path) -> int:
    from mapanything.pictures.curves import draw_run
    from mapanything.train.logs import read_log

    pictures = sorted((folder / PICTURES).glob("*.png"), key=lambda path: path.stat().st_mtime)
    picture = read_image(pictures[-1]) if pictures else None
    args.output = None
    print(f"newest run, {folder}: ", end="", flush=True)
    return save(args, f"run_{folder.name}", draw_run(folder.name, read_log(folder), picture))
