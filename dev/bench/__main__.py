"""Measures how fast it is: `python -m dev.bench [data|model|train|results|viz|all]`.

data: ratios against plain references in the same run. A figure is the median of several rounds in which both sides take
turns, so that a machine whose speed drifts slows both. References are what one would write first: PyYAML's pure loader,
Open3D's PCD reader, Pillow, Python loops.
model: the full-size networks beside upstream's figures (model.py).
train: the training step, and its loader, loss and checkpoints (train.py).
results: comparing clouds, and writing what was predicted (results.py).
viz: pictures, beside Open3D and Matplotlib as they are (viz.py).
all: one after the other. One that fails is said in a line, the others still run, and the exit code is 1.

Behind a ratio stand the smallest and the largest one of the rounds. Speed is no verdict: whatever the ratios are, the exit
code is 0.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dev.bench.timing import Figure, with_spread
from dev.cli import BENCH, SUITES
from mapanything.cli.data import IMAGES
from mapanything.errors import run_command
from mapanything.files import write_atomic


def machine() -> dict[str, str]:
    """The machine that the figures were measured on."""
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
    args = BENCH.parse()
    rows, failed = [], {}
    for suite in SUITES if args.suite == "all" else (args.suite,):
        try:
            rows += [{"suite": suite} | row for row in run(suite, args.root, args.rounds or SUITES[suite])]
        except Exception as error:
            if args.suite != "all":
                raise
            failed[suite] = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{suite} failed: {failed[suite]}", file=sys.stderr)
        if args.suite == "all":
            print(flush=True)
    if args.json:
        content = json.dumps({"machine": machine(), "figures": rows, "failed": failed}, indent=1, allow_nan=False)
        write_atomic(args.json, (content + "\n").encode())
    return 1 if failed else 0


def run(suite: str, root: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Measures one suite and prints its table; its rows."""
    if suite == "data":
        return bench_data(root, rounds)
    return {"model": bench_model, "train": bench_train, "results": bench_results, "viz": bench_viz}[suite](rounds)


def bench_data(root: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Prints the table of the data path; its rows."""
    from dev.bench.data import measure

    figures, source = measure(root or (IMAGES if IMAGES.is_dir() else None), rounds)
    return print_figures(figures, {"data": source})


def bench_train(rounds: int) -> list[dict[str, Any]]:
    """Prints the table of steps and that of ratios; their rows."""
    from dev.bench import train as suite

    print(f"{'training step':28}{'':24}{'seconds':>9}{'views/s':>9}{'peak':>9}{'MFU':>6}")
    rows: list[dict[str, Any]] = []
    for row in suite.measure_steps(rounds):
        if isinstance(row, str):
            print(row)
            continue
        peak = "" if row.peak_gb is None else f"{row.peak_gb:.1f} GB"
        mfu = "" if row.mfu is None else f"{row.mfu:.0%}"
        print(f"{row.name:28}{row.shape:24}{row.seconds:9.3f}{row.views_per_s:9.2f}{peak:>9}{mfu:>6}", flush=True)
        rows.append(asdict(row))
    return rows + print_figures(*suite.measure(rounds))


def bench_results(rounds: int) -> list[dict[str, Any]]:
    """Prints the table of clouds and files; its rows."""
    from dev.bench.results import measure

    figures, model = measure(rounds)
    return print_figures(figures, {"network": model})


def bench_viz(rounds: int) -> list[dict[str, Any]]:
    """Prints the table of the pictures; its rows."""
    from dev.bench.viz import measure

    figures, memory = measure(rounds)
    return print_figures(figures, {"memory": memory})


def print_figures(figures: list[Figure], facts: dict[str, str]) -> list[dict[str, Any]]:
    """Prints what they were measured on and a line per figure; the rows, each with the facts."""
    print(", ".join(f"{key} {value}" for key, value in (machine() | facts).items()))
    print(f"{'':28}{'ours':>12}{'reference':>12}{'ratio':>28}{'goal':>7}   reference is")
    for f in figures:
        mark = "" if f.ratio >= f.goal else "  BELOW GOAL"
        ratio = with_spread(f.ratio, f.spread)
        print(f"{f.name:28}{f.ours_ms:9.2f} ms{f.reference_ms:9.2f} ms{ratio:>28}{f.goal:7.2f}   {f.reference}{mark}")
    return [asdict(f) | {"ratio": f.ratio} | facts for f in figures]


def bench_model(rounds: int) -> list[dict[str, Any]]:
    """Prints the network's table, of the card where there is one, else of the CPU; its rows."""
    import torch

    from dev.bench import model as suite

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    rows: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        print("the CPU's cases are not measured beside a card: CUDA_VISIBLE_DEVICES= ./invoke bench model")
        print(
            f"{'v1.1 at 518x518, bf16, infer':38}{'passes/s':>9}{'published':>10}{'ratio':>7}{'peak':>11}{'MFU':>7}  attention"
        )
        for row in suite.measure_gpu(max(3, rounds)):
            ratio = row.passes_per_s / row.published
            mfu = "unknown" if row.mfu is None else f"{row.mfu:.0%}"
            speed = f"{row.passes_per_s:37.3f}{row.published:10.3f}{ratio:7.2f}"
            print(f"{row.num_views:4} views{speed}{row.peak_gb:8.1f} GB{mfu:>7}  {row.kernel}")
            rows.append(asdict(row) | {"ratio": ratio})
        return rows
    print("seconds are processor time per thread; the reference does upstream's extra work (see model.py); 'upstream' is")
    print("upstream itself on 2 cores of an EPYC with AVX512-BF16, not in this run")
    print(f"{'518x392':38}{'ours':>9}{'reference':>10}{'ratio':>20}{'upstream':>10}{'memory':>11}{'upstream':>10}")
    for case, measured in suite.measure_cpu(rounds):
        ratio = measured.reference_s / measured.cpu_s
        times = f"{measured.cpu_s:7.1f} s{measured.reference_s:8.1f} s{with_spread(ratio, measured.spread):>20}"
        memory = f"{measured.peak_gib:7.1f} GiB{case.upstream_gib:6.1f} GiB"
        print(f"{case.name:38}{times}{case.upstream_s:8.1f} s{memory}", flush=True)
        rows.append(asdict(case) | asdict(measured) | {"ratio": ratio})
    print("no GPU here: its rates were not measured")
    return rows


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    run_command(main)
