"""The whole flow on a generated data set, from nothing to pictures: a user's own commands, one after the other.

Each step is printed as it could be typed, and runs in a process of its own. The first one that fails ends the demo with
its exit code.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from pathlib import Path

from mapanything.errors import InputError, run_command
from mapanything.opv2v.layout import COMPLETE, FrameKey, scan

# Half a minute's worth: two splits, three vehicles each. `--overwrite` replaces an earlier demo's data set.
SMALL = ("--overwrite", "--splits", "train,validate", "--scenarios", "1", "--agents", "3", "--frames", "2")


@dataclass(frozen=True, slots=True)
class Step:
    """One command, `python -m mapanything.tools.<module> <arguments>`, and what it leaves behind."""

    title: str
    module: str
    arguments: tuple[str | Path, ...]
    result: Path | None = None

    def command(self) -> list[str]:
        return ["-m", f"mapanything.tools.{self.module}", *map(str, self.arguments)]


def run(step: Step) -> float:
    """Runs a step and returns its seconds; a step that fails ends the demo with the same exit code."""
    command = step.command()
    print(f"\n{step.title}\n$ {shlex.join(['python', *command])}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        print(f"demo: '{step.title}' ended with exit code {code}", file=sys.stderr)
        sys.exit(128 - code if code < 0 else code)
    return time.perf_counter() - start


def first_complete_frame(root: Path) -> FrameKey:
    """The frame that the pictures show."""
    for folder in scan(root):
        for frame, bits in folder.frames.items():
            if bits == COMPLETE:
                return folder.key(frame)
    raise InputError(f"{root}: no frame has its YAML, cloud and four images; `invoke check-data` says what is missing")


def sample_steps(work: Path, images: Path, depth: Path, jobs: tuple[str, ...]) -> list[Step]:
    return [
        Step("make a data set", "make_sample", ("--output", work / "data", *SMALL, *jobs), work / "data"),
        Step("check it, with its depth", "check_opv2v", ("--root", images, "--depth-root", depth, "--deep", *jobs)),
    ]


def data_steps(work: Path, images: Path, jobs: tuple[str, ...]) -> list[Step]:
    """What is done to any data set, generated or real. Each root's depth maps have a folder of their own."""
    depth = work / f"lidar_depth_{blake2b(os.fsencode(images.resolve()), digest_size=4).hexdigest()}"
    report = work / "check.json"
    roots = ("--root", images, "--depth-root", depth)
    return [
        Step("make depth maps from the clouds", "make_depth", (*roots, "--overwrite", *jobs), depth),
        Step("check the data and these depth maps", "check_opv2v", (*roots, "--report", report, *jobs), report),
        Step("show the tree", "tree", roots),
    ]


def picture_steps(images: Path, pictures: Path) -> list[Step]:
    key = first_complete_frame(images)
    of = ("--split", key.split, "--sequence", key.scenario, f"--agent={key.agent}", "--frame", key.frame)
    return [
        Step(f"draw {title}", "viz", (kind, "--root", images, *of, "--output", target), target)
        for kind, title in (("pose", "cameras, boxes and clouds"), ("frame", "clouds and boxes over the images"))
        for target in (pictures / f"demo_{kind}.png",)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="mapanything.tools.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="use this data set instead of a generated one")
    parser.add_argument("--output", type=Path, default=Path("experiments/demo"), help="work folder (%(default)s)")
    parser.add_argument("--jobs", help="processes (default: one per core)")
    arguments = parser.parse_args()
    jobs = ("--jobs", arguments.jobs) if arguments.jobs else ()
    work: Path = arguments.output
    images = arguments.root or work / "data" / "opv2v_images"
    done: list[tuple[Step, float]] = []
    if arguments.root is None:
        depth = work / "data" / "opv2v_depth"
        done += [(step, run(step)) for step in sample_steps(work, images, depth, jobs)]
    done += [(step, run(step)) for step in data_steps(work, images, jobs)]
    pictures = Path("visualization_outputs") / date.today().isoformat()
    done += [(step, run(step)) for step in picture_steps(images, pictures)]

    print(f"\n{'step':<42} {'time':>8}  result")
    for step, seconds in done:
        print(f"{step.title:<42} {seconds:>6.1f} s  {step.result if step.result is not None else ''}".rstrip())
    print(f"{'together':<42} {sum(seconds for _, seconds in done):>6.1f} s")
    return 0


if __name__ == "__main__":
    run_command(main)
