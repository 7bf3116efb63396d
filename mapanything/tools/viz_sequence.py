"""`viz sequence`: the pictures of a range of frames as GIF, MP4 or a folder of PNGs, in constant memory, on all cores."""

from __future__ import annotations

import argparse
import copy
import io
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.errors import InputError
from mapanything.pictures import canvas
from mapanything.pictures.plots import pose_png
from mapanything.pictures.scenes import read_positions
from mapanything.pictures.video import SUFFIXES, open_sequence
from mapanything.processes import holding_ctrl_c
from mapanything.tools.viz_options import default_range, find_timestamp, output_path
from mapanything.tools.viz_predictions import find_prediction, predicted_frames
from mapanything.tools.viz_scenes import figure_of, frames_around, read_scene, timestamp_picture

Image3 = NDArray[np.uint8]


def sequence(args: argparse.Namespace) -> int:
    predicted = predicted_frames(args) if args.prediction is not None else None
    timestamp = find_timestamp(argparse.Namespace(**(vars(args) | {"frame": None})))
    have = [frame for frame in timestamp.frames() if predicted is None or frame in predicted]
    where = args.prediction or timestamp.folders[0].path
    frames = chosen_frames(have, args.frame, where)[:: args.every]
    key = timestamp.key
    args.split, args.scenario, args.agent = key.split, key.scenario, key.agent
    if args.max_range is None:  # one for all, or the picture would pump
        ends = [replace(timestamp, frame=frame).agents() for frame in (frames[0], frames[len(frames) // 2], frames[-1])]
        args.max_range = max(default_range(agents) for agents in ends)
    if "paths" not in args.hide:
        around = frames_around(timestamp, frames)
        args.positions = around, read_positions(timestamp.folders, around)
    name = f"sequence_{args.picture}_{key.split}_{key.scenario}_{key.agent}_{frames[0]}-{frames[-1]}"
    path = output_path(args, name, ".mp4")
    with open_sequence(path, args.fps) as add:
        for frame, image in zip(frames, _drawn(args, frames), strict=True):
            add(image, frame)
    count = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
    print(f"{path}: {count}" + ("" if path.suffix.lower() in SUFFIXES else ", one PNG each"))
    return 0


def chosen_frames(have: list[str], text: str | None, where: Path) -> list[str]:
    """The frames that `a-b` or `a,b` names; all without a text.

    Raises:
        InputError: a named frame, or all of a range, is not `where` they come from; there is none at all.
    """
    if not have:
        raise InputError(f"{where}: holds no frame that the data have too")
    if text is None:
        return have
    chosen: set[str] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and first.isascii() and first.isdigit() and last.isascii() and last.isdigit():
            found = {frame for frame in have if int(first) <= int(frame) <= int(last)}
        else:
            found = {part} & set(have)
        if not found:
            raise InputError(f"{where}: no frame '{part}'; it has {len(have)}, from {have[0]} to {have[-1]}")
        chosen |= found
    return [frame for frame in have if frame in chosen]


def draw(args: argparse.Namespace, frame: str) -> Image3:
    """One frame's picture (H, W, 3)."""
    args = copy.copy(args)
    args.frame = frame
    predicted = find_prediction(args) if args.prediction is not None else None
    timestamp = find_timestamp(args)
    if args.picture == "pose":
        scene, max_range = read_scene(args, timestamp)
        image = np.asarray(
            Image.open(io.BytesIO(pose_png(scene, max_range, args.point_size, args.hide, in_3d=not args.no_3d))).convert("RGB")
        )
    else:
        picture = timestamp_picture(args, timestamp, args.picture, predicted).without(args.hide)
        image = canvas.figure_image(figure_of(args, picture))
    if args.width and args.width < image.shape[1]:
        size = (args.width, round(image.shape[0] * args.width / image.shape[1]))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return image


def _drawn(args: argparse.Namespace, frames: list[str]) -> Iterator[Image3]:
    """The pictures in order, no more than a few at a time, however many processes draw them."""
    jobs = min(args.jobs, len(frames))
    if jobs == 1:
        yield from (draw(args, frame) for frame in frames)
        return
    # Mesa does not survive a fork after it has drawn.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun: deque[Future[Image3]] = deque()
        try:
            for frame in frames:
                with holding_ctrl_c():  # a worker is started when there is work for it
                    begun.append(pool.submit(draw, args, frame))
                if len(begun) > jobs:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        except BrokenProcessPool as error:
            raise InputError("a process that draws was killed (out of memory?); run again with a smaller --jobs") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
