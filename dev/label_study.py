"""Measures what right labels are worth: the tiny network trained on each kind of depth labels, tested on rendered truth.

    python -m dev.label_study --output experiments/label_study [--jobs 2] [--device cpu]

One generated data set, four kinds of maps for it (`KINDS`), three seeds, equal optimiser steps; no run is selected by a
validation figure, so that the labels, and what training believes of them, are the only difference. A scenario is the unit:
its scenes and the seeds are averaged, and differences between kinds are resampled over scenarios, pair by pair. Beside them
stands a constant that looks at no image: the median depth of each camera and pixel over the training scenes.

What is done is not done again: stopped at any moment, the same command goes on. The table is printed and written to
`results.json` in the output folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mapanything.environment import fingerprint
from mapanything.errors import run_command
from mapanything.evaluation.statistics import bootstrap_interval
from mapanything.files import write_atomic

KINDS = {  # arguments of make-depth; None: the maps that were rendered with the images
    "rendered": None,
    "plain": ("--visibility", "off"),
    "visible": (),
    "fused": ("--fuse",),
}
BASELINE = "plain"  # what the others are compared with
SEEDS = (0, 1, 2)
FIGURES = {"depth_abs_rel": "AbsRel", "depth_delta_1_25": "δ1.25", "depth_rmse_m": "RMSE m", "pose_rotation_deg": "rotation °"}
AGENTS = 3
SAMPLE = {"frames": 1, "agents": AGENTS, "image_size": "280x210", "seed": 71}
SCENES_PER_STEP = 2


@dataclass(frozen=True)
class Study:
    """One study's folder and size."""

    folder: Path
    train: int  # scenarios
    test: int
    steps: int
    resolution: tuple[int, int]
    labels: tuple[str, ...]  # of `KINDS`: those that are trained with
    jobs: int  # trainings at a time
    device: str

    @property
    def images(self) -> Path:
        return self.folder / "data" / "opv2v_images"

    def depth(self, kind: str) -> Path:
        return self.folder / "data" / "opv2v_depth" if KINDS[kind] is None else self.folder / f"depth_{kind}"

    def run(self, kind: str, seed: int) -> Path:
        return self.folder / "runs" / f"{kind}_{seed}"


def call(module: str, log: Path, *words: str, **options: object) -> None:
    """Runs `python -m mapanything.MODULE --option=value ... WORDS`, output to `log`; raises where it fails."""
    command = [
        "-m",
        f"mapanything.{module}",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        *words,
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        done = subprocess.run([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{said}")


def make_data(study: Study) -> None:
    """Makes the data set and its maps of all kinds."""
    logs, done = study.folder / "logs", study.folder / "data.done"
    if not done.exists():
        size = {"splits": "train,validate,test", "scenarios": f"{study.train},1,{study.test}"}
        call("tools.make_sample", logs / "data.log", "--overwrite", output=study.folder / "data", **SAMPLE, **size)
        write_atomic(done, b"")
    for kind, how in KINDS.items():
        if how is not None:
            call("tools.make_depth", logs / f"{kind}.log", *how, root=study.images, depth_root=study.depth(kind))


def train(study: Study, kind: str, seed: int) -> None:
    """Trains the tiny network with stage 1's config, and goes on where it was stopped."""
    folder = study.run(kind, seed)
    if (folder / "checkpoint-final.pth").exists():
        return
    config = {
        "stage": "stage1",
        "model": "mapanything_tiny",
        "model.pretrained": "null",
        "machine.opv2v_images_root": study.images,
        "machine.opv2v_depth_root": study.depth(kind),
        "machine.num_workers": 1,
        "output_dir": folder,
        "distributed.world_size": 1,
        "distributed.device": study.device,
        "dataset.resolution": "[{},{}]".format(*study.resolution),
        "dataset.seed": seed,
        "train_params.seed": seed,
        "train_params.max_num_of_imgs_per_gpu": 4 * SCENES_PER_STEP,
        "train_params.epochs": math.ceil(study.steps * SCENES_PER_STEP / (study.train * AGENTS)),
        "train_params.lr": 6e-4,
        "train_params.amp": "fp32",
        "train_params.validate": "false",
        "train_params.print_every": 200,
    }
    start = time.monotonic()
    call("train.training", study.folder / "logs" / f"{kind}_{seed}.log", *(f"{key}={value}" for key, value in config.items()))
    print(f"{kind}, seed {seed}: trained in {time.monotonic() - start:.0f} s", flush=True)


def measure(study: Study) -> Path:
    """Measures every run on the test split, against rendered truth; the file of figures."""
    out = study.folder / "evaluation"
    if not (out / "metrics.csv").exists():
        models = [f"{kind}_{seed}={study.run(kind, seed) / 'checkpoint-final.pth'}" for kind in study.labels for seed in SEEDS]
        words = ("--every-agent", "--overwrite", "--resolution", *map(str, study.resolution), "--models", *models)
        options = {"mode": "single", "split": "test", "chamfer_points": 1000, "worst": 0, "out": out}
        log = study.folder / "logs" / "evaluate.log"
        call("tools.evaluate", log, *words, root=study.images, depth_root=study.depth("rendered"), **options)
    return out / "metrics.csv"


def by_scenario(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """kind -> figure -> scenario -> the mean over its scenes and the seeds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            kind = row["model"].rpartition("_")[0]
            for figure in FIGURES:
                values.setdefault((kind, figure, row["scenario"]), []).append(float(row[figure]))
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, figure, scenario), numbers in values.items():
        out.setdefault(kind, {}).setdefault(figure, {})[scenario] = float(np.mean(numbers))
    return out


def blind(study: Study) -> dict[str, dict[str, float]]:
    """Depth figures per test scenario of the constant: the training maps' median of each camera and pixel, rendered truth."""
    root = study.depth("rendered")
    figures: dict[str, dict[str, list[float]]] = {"depth_abs_rel": {}, "depth_delta_1_25": {}, "depth_rmse_m": {}}
    for camera in range(4):
        known = [np.load(path) for path in sorted((root / "train").glob(f"*/*/*_camera{camera}_depth.npy"))]
        stack = np.stack(known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of pixels that no map knows
            constant = np.nanmedian(np.where(stack > 0, stack, np.nan), axis=0)
        for path in sorted((root / "test").glob(f"*/*/*_camera{camera}_depth.npy")):
            true = np.load(path)
            where = (true > 0) & np.isfinite(constant)
            p, t = constant[where].astype(float), true[where].astype(float)
            for figure, value in (
                ("depth_abs_rel", np.mean(np.abs(p - t) / t)),
                ("depth_delta_1_25", np.mean(np.maximum(p / t, t / p) < 1.25)),
                ("depth_rmse_m", np.sqrt(np.mean((p - t) ** 2))),
            ):
                figures[figure].setdefault(path.parts[-3], []).append(float(value))
    return {figure: {name: float(np.mean(v)) for name, v in of.items()} for figure, of in figures.items()}


def table(results: dict[str, dict[str, dict[str, float]]]) -> tuple[list[str], dict[str, dict[str, dict[str, float]]]]:
    """Lines of Markdown, and the numbers: mean, interval, and the paired difference to `BASELINE` with its interval."""
    lines = [
        "| labels | " + " | ".join(f"{name} | against {BASELINE}" for name in FIGURES.values()) + " |",
        "|---|" + "---:|" * (2 * len(FIGURES)),
    ]
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for kind, figures in results.items():
        cells = [kind]
        for figure in FIGURES:
            if figure not in figures:
                cells += ["–", "–"]
                continue
            scenarios = sorted(figures[figure])
            values = np.array([figures[figure][name] for name in scenarios])
            other = np.array([results[BASELINE][figure][name] for name in scenarios])
            mean, (low, high) = float(values.mean()), bootstrap_interval(values, 0, figure)
            difference, (d_low, d_high) = float((values - other).mean()), bootstrap_interval(values - other, 0, figure)
            numbers.setdefault(kind, {})[figure] = {
                "mean": mean,
                "low": low,
                "high": high,
                "difference": difference,
                "difference_low": d_low,
                "difference_high": d_high,
            }
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
            cells.append("" if kind == BASELINE else f"{difference:+.3f} [{d_low:+.3f}, {d_high:+.3f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return lines, numbers


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.label_study", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("experiments/label_study"), help="work folder (%(default)s)")
    parser.add_argument("--train", type=int, default=200, help="training scenarios (%(default)s)")
    parser.add_argument("--test", type=int, default=40, help="test scenarios (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=3000, help="optimiser steps of each run, rounded up to epochs (%(default)s)"
    )
    parser.add_argument(
        "--resolution", type=int, nargs=2, default=(84, 56), metavar="N", help="width and height (%(default)s)"
    )
    parser.add_argument("--labels", nargs="+", choices=KINDS, default=list(KINDS), help="to train with (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--until", choices=("data", "train", "table"), default="table", help="where to stop (%(default)s)")
    args = parser.parse_args(argv)
    study = Study(
        args.output, args.train, args.test, args.steps, tuple(args.resolution), tuple(args.labels), args.jobs, args.device
    )
    make_data(study)
    if args.until == "data":
        return 0
    with ThreadPoolExecutor(study.jobs) as pool:
        list(pool.map(lambda run: train(study, *run), [(kind, seed) for seed in SEEDS for kind in study.labels]))
    if args.until == "train":
        return 0
    results = by_scenario(measure(study)) | {"blind constant": blind(study)}
    lines, numbers = table(results)
    record = {
        "steps": args.steps,
        "resolution": list(args.resolution),
        "train": args.train,
        "test": args.test,
        "seeds": len(SEEDS),
        "code": fingerprint(),
        "table": numbers,
        "scenarios": results,
    }
    write_atomic(args.output / "results.json", (json.dumps(record, indent=1) + "\n").encode())
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_command(main)
