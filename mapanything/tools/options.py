"""The options that every data task shares: which data, which part of it, how many processes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mapanything.opv2v.layout import Selection

IMAGES = Path("data/opv2v_images")
DEPTH = Path("data/opv2v_depth")


def add_data_options(parser: argparse.ArgumentParser, depth: str) -> None:
    """Adds --root, --depth-root (help text `depth`), --split, --scenario, --agent, --frame; underscores work as well."""
    parser.add_argument("--root", "--dataset_root", "--dataset-root", type=Path, default=IMAGES, metavar="DIR",
                        help="image root, the folder that holds train, validate, test (default: %(default)s)")  # fmt: skip
    parser.add_argument("--depth-root", "--depth_root", type=Path, default=None, metavar="DIR", help=depth)
    for name, aliases in {"split": (), "scenario": ("--sequence",), "agent": (), "frame": ()}.items():
        parser.add_argument(f"--{name}", *aliases, action="append", default=[], metavar="NAME",
                            help=f"only this {name}; repeat it or give a,b,c (default: all)")  # fmt: skip


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs."""
    parser.add_argument("--jobs", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes (default: one per core, %(default)s here)")  # fmt: skip


def selection(args: argparse.Namespace) -> Selection:
    """What --split, --scenario, --agent and --frame say. An id that starts with a dash is given as --agent=-1."""

    def names(values: list[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))

    return Selection(names(args.split), names(args.scenario), names(args.agent), names(args.frame))


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 on")
    return int(text)
