"""Writes a synthetic OPV2V data set with dense depth: `python -m mapanything.tools.make_sample --output DIR`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mapanything.errors import InputError, run_command
from mapanything.opv2v.sample.writer import DEPTH, IMAGES, SampleOptions, write_sample

_DEFAULT = SampleOptions()


def image_size(text: str) -> tuple[int, int]:
    """'800x600' -> (800, 600).

    Raises:
        InputError: not WIDTHxHEIGHT.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.strip().lower())
    if match is None:
        raise InputError(f"image size '{text[:40]}': give WIDTHxHEIGHT, for example 800x600")
    return int(match[1]), int(match[2])


def scenario_counts(text: str) -> int | tuple[int, ...]:
    """'2' -> 2, '24,4' -> (24, 4).

    Raises:
        InputError: not whole numbers with commas.
    """
    if re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text.strip()) is None:
        raise InputError(f"scenarios '{text[:40]}': give a number, or one for each split, for example 24,4")
    counts = tuple(int(part) for part in text.split(","))
    return counts[0] if len(counts) == 1 else counts


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m mapanything.tools.make_sample",
        description=f"Writes a synthetic OPV2V data set: DIR/{IMAGES} and DIR/{DEPTH}. Same options, same bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = options.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write; new, empty, or an earlier sample")
    add("--overwrite", action="store_true", help="replace an earlier sample in DIR; foreign files stay")
    add("--seed", type=int, default=_DEFAULT.seed, help="another number, another town")
    add("--splits", default=",".join(_DEFAULT.splits), help="comma-separated splits")
    add("--scenarios", default=str(_DEFAULT.scenarios), metavar="N[,N...]", help="per split; one number, or one for each")
    add("--agents", type=int, default=_DEFAULT.agents, metavar="N", help="vehicles with sensors per scenario, 2 to 7")
    add("--frames", type=int, default=_DEFAULT.frames, metavar="N", help="timestamps per scenario, 0.1 s apart")
    add("--image-size", default=f"{_DEFAULT.width}x{_DEFAULT.height}", metavar="WxH", help="always 100 degrees wide")
    add("--lidar-channels", type=int, default=_DEFAULT.lidar_channels, metavar="N", help="lines of a sweep")
    add(
        "--lidar-points",
        type=int,
        default=_DEFAULT.lidar_points,
        metavar="N",
        help="rays of a sweep; about 4 in 5 return",
    )
    add("--no-depth", action="store_true", help=f"leave out {DEPTH}")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    add("--tests-only", action="store_true", help="mark the roots so that no training run accepts them")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = parser().parse_args(arguments)
    width, height = image_size(args.image_size)
    options = SampleOptions(
        seed=args.seed,
        splits=tuple(split.strip() for split in args.splits.split(",") if split.strip()),
        scenarios=scenario_counts(args.scenarios),
        agents=args.agents,
        frames=args.frames,
        width=width,
        height=height,
        lidar_channels=args.lidar_channels,
        lidar_points=args.lidar_points,
        depth=not args.no_depth,
        tests_only=args.tests_only,
    )
    count = write_sample(args.output, options, jobs=args.jobs, overwrite=args.overwrite, progress=True)
    print(f"{count} agent-frames in {args.output / IMAGES}" + ("" if args.no_depth else f", depth in {args.output / DEPTH}"))
    return 0


if __name__ == "__main__":
    run_command(main)
