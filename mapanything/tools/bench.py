"""How fast it is: `python -m mapanything.tools.bench [data|model]`.

data: ratios against plain references in the same run. A figure is the median of several rounds in which both sides take
turns, so that a machine whose speed drifts slows both. References are what one would write first: PyYAML's pure loader,
Open3D's PCD reader, Pillow, Python loops.
model: the full-size networks beside upstream's figures (bench_model.py).
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
from typing import Any

from mapanything.errors import InputError, run_command
from mapanything.opv2v.files import write_atomic
from mapanything.tools.options import IMAGES

SUITES = ("data", "model")


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
    parser.add_argument("--rounds", type=int, metavar="N", help="timed rounds (default: data 9, model 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: give 1 or more")
    rows, fine = bench_data(args.root, args.rounds or 9) if args.suite == "data" else bench_model(args.rounds or 2)
    if args.json:
        content = json.dumps({"machine": machine(), "figures": rows}, indent=1, allow_nan=False)
        write_atomic(args.json, (content + "\n").encode())
    return 0 if fine else 1


def bench_data(root: Path | None, rounds: int) -> tuple[list[dict[str, Any]], bool]:
    """Prints the table of the data path; its rows, and whether every goal is met."""
    from mapanything.tools.bench_data import measure

    figures, source = measure(root or (IMAGES if IMAGES.is_dir() else None), rounds)
    print(", ".join(f"{key} {value}" for key, value in (machine() | {"data": source}).items()))
    print(f"{'':28}{'ours':>12}{'reference':>12}{'ratio':>8}{'goal':>7}   reference is")
    for f in figures:
        mark = "" if f.ratio >= f.goal else "  BELOW GOAL"
        print(f"{f.name:28}{f.ours_ms:9.2f} ms{f.reference_ms:9.2f} ms{f.ratio:8.2f}{f.goal:7.2f}   {f.reference}{mark}")
    rows = [asdict(f) | {"ratio": f.ratio, "data": source} for f in figures]
    return rows, all(f.ratio >= f.goal for f in figures)


def bench_model(rounds: int) -> tuple[list[dict[str, Any]], bool]:
    """Prints the network's tables; whether it is nowhere slower than the reference of the same run."""
    import torch

    from mapanything.tools import bench_model as suite

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(
        "seconds are processor time per thread; the reference does upstream's extra work (see bench_model.py); 'upstream' is"
    )
    print("upstream itself on 2 cores of an EPYC with AVX512-BF16, not in this run")
    print(f"{'518x392':38}{'ours':>9}{'reference':>10}{'ratio':>7}{'upstream':>10}{'memory':>11}{'upstream':>10}")
    rows: list[dict[str, Any]] = []
    for case, measured in suite.measure_cpu(rounds):
        ratio = measured.reference_s / measured.cpu_s
        print(f"{case.name:38}{measured.cpu_s:7.1f} s{measured.reference_s:8.1f} s{ratio:7.2f}{case.upstream_s:8.1f} s"
              f"{measured.peak_gib:7.1f} GiB{case.upstream_gib:6.1f} GiB", flush=True)  # fmt: skip
        rows.append(asdict(case) | asdict(measured) | {"ratio": ratio})
    fine = all(row["ratio"] >= 1 for row in rows)
    if not torch.cuda.is_available():
        print("no GPU here: its rates were not measured")
        return rows, fine
    print(f"{'v1.1 at 518x518, bf16, infer':38}{'passes/s':>9}{'published':>10}{'ratio':>7}{'peak':>11}{'MFU':>7}")
    for row in suite.measure_gpu(max(3, rounds)):
        ratio = row.passes_per_s / row.published
        mfu = "unknown" if row.mfu is None else f"{row.mfu:.0%}"
        print(f"{row.num_views:4} views{row.passes_per_s:37.3f}{row.published:10.3f}{ratio:7.2f}{row.peak_gb:8.1f} GB{mfu:>7}")
        rows.append(asdict(row) | {"ratio": ratio})
    return rows, fine


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    run_command(main)
