"""The options that tasks share: which data, which part of it, how many processes; numbers, names, image sizes, devices."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.opv2v.layout import Selection

IMAGES = Path("data/opv2v_images")
DEPTH = Path("data/opv2v_depth")


def add_option(parser: Any, *names: str, **options: Any) -> None:
    """An option of a parser or a group of it, whose names may be typed with dashes and with underscores alike."""
    swap = str.maketrans("-_", "_-")
    forms = [form for name in names for form in (name, name[:2] + name[2:].translate(swap))]
    parser.add_argument(*dict.fromkeys(forms), **options)


def add_data_options(parser: argparse.ArgumentParser, depth: str) -> None:
    """Adds --root, --depth-root (help text `depth`), --split, --scenario, --agent, --frame: of each, all that are named."""
    add_option(parser, "--root", "--dataset_root", type=Path, default=IMAGES, metavar="DIR",
               help="image root, the folder that holds train, validate, test (default: %(default)s)")  # fmt: skip
    add_option(parser, "--depth-root", type=Path, default=None, metavar="DIR", help=depth)
    for name, aliases in {"split": (), "scenario": ("--sequence",), "agent": (), "frame": ()}.items():
        parser.add_argument(f"--{name}", *aliases, action="append", default=[], metavar="NAME",
                            help=f"only this {name}; repeat it or give a,b,c (default: all)")  # fmt: skip


def add_frame_options(parser: argparse.ArgumentParser, title: str, frame: str = "timestamp, such as 000069") -> Any:
    """Adds --root, --split, --scenario, --agent, --frame (help text `frame`) as a group, which is returned: of each, one."""
    group = parser.add_argument_group(f"{title} (what is not given is the first there is)")
    add_option(group, "--root", "--dataset_root", type=Path, default=IMAGES, metavar="DIR",
               help="images, YAML, clouds [%(default)s]")  # fmt: skip
    add_option(group, "--split", help="train, validate, test, ...")
    add_option(group, "--scenario", "--sequence", help="such as 2021_08_16_22_26_54")
    add_option(group, "--agent", help="the main agent, such as 641")
    add_option(group, "--frame", help=frame)
    return group


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs."""
    parser.add_argument("--jobs", type=positive, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes (default: one per core, %(default)s here)")  # fmt: skip


def selection(args: argparse.Namespace) -> Selection:
    """What --split, --scenario, --agent and --frame say. An id that starts with a dash is given as --agent=-1."""

    def names(values: list[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))

    return Selection(names(args.split), names(args.scenario), names(args.agent), names(args.frame))


def positive(text: str) -> int:
    """An argument's type: 1, 2, ..."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 on")
    return int(text)


def whole(text: str) -> int:
    """An argument's type: 0, 1, 2, ..."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 on")
    return int(text)


def length(text: str) -> float:
    """An argument's type: a number above 0, of metres or pixels."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def odd(text: str) -> int:
    """An argument's type: 1, 3, ... 99, of pixels."""
    if not (text.isascii() and text.isdigit() and int(text) < 100 and int(text) % 2):
        raise argparse.ArgumentTypeError(f"{text!r}: give an odd number of pixels below 100")
    return int(text)


def file_name(suffix: str) -> Callable[[str], Path]:
    """An argument's type: the name of a file that ends so."""

    def check(text: str) -> Path:
        if Path(text).suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"{text!r}: give a name that ends in {suffix}")
        return Path(text)

    return check


def parse_resolution(words: Sequence[str] | None) -> tuple[int, int] | None:
    """Width and height of `--resolution W H`, WxH or W,H.

    Raises:
        InputError: no two multiples of the network's patch size.
    """
    if words is None:
        return None
    from mapanything.datasets.views import check_resolution

    numbers = " ".join(words).replace("x", " ").replace(",", " ").split()
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise InputError(f"--resolution {' '.join(words)}: give width and height, e.g. 518 392")
    return check_resolution([int(number) for number in numbers])


def parse_devices(text: str) -> list[str]:
    """torch's names for `--device`: cpu, cuda (all GPUs), cuda:N, several with commas; auto: all GPUs, else cpu.

    Raises:
        InputError: there is no such device.
    """
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if text == "auto":
        return gpus or ["cpu"]
    found: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "cuda" and gpus:
            found += gpus
        elif name == "cpu" or name in gpus:
            found.append(name)
        else:
            raise InputError(f"--device {name}: not on this machine, which has {', '.join(['cpu', *gpus])}")
    if not found:
        raise InputError("--device: give cpu or cuda")
    return found


def parse_device(text: str) -> str:
    """As `parse_devices`, for what works on one: of several GPUs the first.

    Raises:
        InputError: there is no such device; several.
    """
    if "," in text:
        raise InputError(f"--device {text}: give one device")
    return parse_devices(text)[0]
