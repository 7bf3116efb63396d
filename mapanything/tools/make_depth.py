"""LiDAR clouds -> z-depth maps of every camera: `python -m mapanything.tools.make_depth --root R --depth-root D`.

One sweep fills 1 to 2 % of an image's pixels, with what the camera sees of it (opv2v/visibility.py). Maps that are there
already are left as they are, so a run that was stopped goes on where it stopped; every file is whole
or not there. A frame that can't be read is named, the others are made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.cli.data import DEPTH, MAKE_DEPTH
from mapanything.errors import InputError, run_command
from mapanything.files import check_writable, remove_stale_temporaries
from mapanything.geometry import carla
from mapanything.geometry.types import Float
from mapanything.opv2v import depth_root, fusion, visibility
from mapanything.opv2v.depth import lidar_depth, write_depth_npy, write_depth_png
from mapanything.opv2v.frame import Frame, read_frame
from mapanything.opv2v.layout import LEADS_NOWHERE, PCD, YAML, DepthLayout, FrameKey, FramePaths, Selection, scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.processes import holding_ctrl_c
from mapanything.tools.options import selection

FORMATS = {"npy": ("npy",), "png": ("png",), "both": ("npy", "png")}
# A real frame's four 800x600 maps: .npy is as large as its pixels, a sparse .png packs well (measured: 23 KB; fused, 78 KB).
FRAME_BYTES = {"npy": 4 * (800 * 600 * 4 + 128), "png": 4 * 32_000, "fused png": 4 * 90_000}


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that a process needs to know."""

    root: Path
    depth: DepthLayout
    suffixes: tuple[str, ...]
    overwrite: bool
    visibility: bool = True
    fuse: bool = False

    @property
    def kind(self) -> depth_root.DepthRoot:
        """The kind of the maps."""
        if self.fuse:
            return depth_root.DepthRoot("fused", "visible", {"fusion": fusion.VERSION}, visibility.VERSION)
        if not self.visibility:
            return depth_root.DepthRoot("lidar", depth_root.PLAIN)
        return depth_root.DepthRoot("lidar", "visible", version=visibility.VERSION)

    def outputs(self, key: FrameKey, camera: int) -> list[Path]:
        return [self.depth.path(key, camera).with_suffix(f".{suffix}") for suffix in self.suffixes]


def make_depth(work: Work, key: FrameKey) -> tuple[int, str]:
    """Makes one agent-frame's maps. Returns how many files were written, and what is wrong with the frame ('' if nothing)."""
    paths = FramePaths(work.root, key)
    written = 0
    try:
        frame = read_frame(paths.yaml)
        missing = [
            (camera, path)
            for camera in frame.cameras
            for path in work.outputs(key, camera.index)
            if work.overwrite or not path.exists()
        ]
        if not missing:
            return 0, ""
        remove_stale_temporaries(missing[0][1].parent)
        points, surface = _sweep(paths.pcd) if work.visibility else (read_pcd(paths.pcd).points, None)
        others = _others(paths, frame) if work.fuse else []
        for camera in frame.cameras:
            outputs = [path for c, path in missing if c is camera]
            if not outputs:
                continue
            size, pose = camera.image_size, camera.camera_from_lidar @ carla.CV_FROM_UE
            if surface is None:
                depth = lidar_depth(points, camera, *size)
            else:
                depth = visibility.visible_depth(points, pose, camera.cv_intrinsics, *size, surface)
            if surface is not None and others:
                moved = [(other, pose @ move) for other, move in others]
                depth = fusion.fused_depth(depth, surface, pose, camera.cv_intrinsics, moved)
            for path in outputs:
                (write_depth_npy if path.suffix == ".npy" else write_depth_png)(path, depth)
                written += 1
    except InputError as error:
        return written, str(error)
    return written, ""


@lru_cache(maxsize=8)  # with --fuse, every vehicle of a timestamp asks for all of them
def _sweep(path: Path) -> tuple[NDArray[np.float32], visibility.Surface]:
    points = read_pcd(path).points
    return points, visibility.sweep_surface(points)


def _others(paths: FramePaths, frame: Frame) -> list[tuple[visibility.Surface, Float]]:
    """The surfaces of the other vehicles of a timestamp, chosen for this run or not."""
    others = []
    for folder in sorted(paths.folder.parent.iterdir()):
        yaml, pcd = folder / paths.yaml.name, folder / paths.pcd.name
        if folder.name != paths.key.agent and yaml.exists() and pcd.exists():
            others.append(fusion.seen_from(_sweep(pcd)[1], frame, read_frame(yaml), paths.key.agent))
    return others


def _done(work: Work, key: FrameKey) -> bool:
    """True if all four cameras' maps are there, told by names alone, so that a finished run takes seconds to repeat."""
    return not work.overwrite and all(path.exists() for k in range(4) for path in work.outputs(key, k))


def _check_space(work: Work, frames: int) -> None:
    folder = check_writable(work.depth.root, "--depth-root")
    needed = frames * sum(FRAME_BYTES["fused png" if work.fuse and suffix == "png" else suffix] for suffix in work.suffixes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: the maps of {frames} agent-frames need about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "free some, narrow with --split, or take --format png"
        )


def _run(work: Work, keys: list[FrameKey], jobs: int) -> Iterator[tuple[int, str]]:
    task = partial(make_depth, work)
    if jobs == 1 or len(keys) == 1:
        yield from map(task, keys)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            with holding_ctrl_c():
                results = pool.map(task, keys, chunksize=8)
            yield from results
        except BrokenProcessPool as error:
            raise InputError("a worker process was killed (out of memory?); run again with a smaller --jobs") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    args = MAKE_DEPTH.parse()
    target = args.depth_root or DEPTH
    if target.is_symlink() and not target.exists():
        raise InputError(f"{target}: is a link to {os.readlink(target)}, which is not there; is the disk mounted?")
    if args.fuse and args.visibility == "off":
        raise InputError("--fuse: what other vehicles know is believed only where it is seen; leave out --visibility off")
    layout = DepthLayout(target, args.depth_pattern)
    work = Work(args.root, layout, FORMATS[args.format], args.overwrite, args.visibility == "on", args.fuse)

    from tqdm import tqdm

    problems: list[str] = []
    keys, total = [], 0
    broken: list[str] = []
    for folder in scan(args.root, selection(args), broken):
        for name, bits in folder.frames.items():
            total += 1
            if bits & YAML and bits & PCD:
                keys.append(folder.key(name))
            else:
                lacking = " and ".join(what for what, bit in (("YAML", YAML), ("cloud", PCD)) if not bits & bit)
                problems.append(f"{folder.path}/{name}: has no {lacking}; restore it")
    problems += [f"{args.root}/{name}: {LEADS_NOWHERE}; is its disk mounted?" for name in broken]
    todo = [key for key in keys if not _done(work, key)]
    if args.fuse:
        todo.sort(key=lambda key: (key.split, key.scenario, key.frame))  # a process reads the vehicles of a timestamp once
    _check_space(work, len(todo))
    everything = selection(args) == Selection()
    if todo:
        removed = depth_root.claim(work.depth, work.kind, replace=work.overwrite and everything)
        if removed:
            print(f"{target}: {removed} maps of another kind removed")
    elif (there := depth_root.look(work.depth)) is not None and there.is_lidar and there != work.kind:
        print(f"{target}: holds {there}; --overwrite makes them anew as {work.kind}")
    written, frames_made, had = 0, 0, len(keys) - len(todo)
    with tqdm(total=len(todo), desc="make-depth", unit="frame", disable=None) as bar:
        for count, problem in _run(work, todo, args.jobs):
            written += count
            frames_made += count > 0
            had += not count and not problem  # of fewer cameras than four, which `_done` does not tell
            if problem:
                problems.append(problem)
            bar.update()
    for problem in problems:
        print(problem)
    print(
        f"{target}: {written} depth maps written for {frames_made} agent-frames, {had} of {total} had theirs already, "
        f"{len(problems)} failed"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
