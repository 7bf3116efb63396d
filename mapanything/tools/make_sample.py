"""Writes a synthetic OPV2V data set with dense depth: `python -m mapanything.tools.make_sample --output DIR`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from mapanything.cli.data import MAKE_SAMPLE
from mapanything.errors import InputError, run_command
from mapanything.opv2v.sample.writer import DEPTH, IMAGES, SampleOptions, write_sample


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


def sample_options(args: argparse.Namespace) -> SampleOptions:
    """Reads the command line. Raises InputError: an option that makes no sense."""
    width, height = image_size(args.image_size)
    return SampleOptions(
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = MAKE_SAMPLE.parse(arguments)
    count = write_sample(args.output, sample_options(args), jobs=args.jobs, overwrite=args.overwrite, progress=True)
    print(f"{count} agent-frames in {args.output / IMAGES}" + ("" if args.no_depth else f", depth in {args.output / DEPTH}"))
    return 0


if __name__ == "__main__":
    run_command(main)
