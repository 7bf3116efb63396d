"""How fast it is, as ratios against plain references in the same run: `python -m mapanything.tools.bench data`.

A figure is the median of several rounds in which both sides take turns, so that a machine whose speed drifts slows both.
References are what one would write first: PyYAML's pure loader, Open3D's PCD reader, Pillow, Python loops.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from mapanything.errors import InputError, run_command
from mapanything.opv2v.files import write_atomic
from mapanything.tools.options import IMAGES

SUITES = ("data",)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import torch

    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("suite", nargs="?", choices=SUITES, default="data", help="what to measure (default: %(default)s)")
    parser.add_argument("--root", type=Path, metavar="DIR",
                        help=f"image root whose first complete frame is used (default: {IMAGES}, else generated)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="timed rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")

    from mapanything.tools.bench_data import measure

    figures, source = measure(args.root or (IMAGES if IMAGES.is_dir() else None), args.rounds)
    about = machine() | {"data": source}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'':28}{'ours':>12}{'reference':>12}{'ratio':>8}{'goal':>7}   reference is")
    for f in figures:
        mark = "" if f.ratio >= f.goal else "  BELOW GOAL"
        print(f"{f.name:28}{f.ours_ms:9.2f} ms{f.reference_ms:9.2f} ms{f.ratio:8.2f}{f.goal:7.2f}   {f.reference}{mark}")
    if args.json:
        rows = [asdict(f) | {"ratio": f.ratio} for f in figures]
        write_atomic(args.json, (json.dumps({"machine": about, "figures": rows}, indent=1) + "\n").encode())
    return 0 if all(f.ratio >= f.goal for f in figures) else 1


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    run_command(main)
