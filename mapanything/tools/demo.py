"""The whole flow on a generated data set, from nothing to pictures: a user's own commands, one after the other.

Each step is printed as it could be typed, and runs in a process of its own. The first one that fails ends the demo with
its exit code.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from pathlib import Path

from mapanything.cli.pictures import DEMO
from mapanything.errors import InputError, run_command
from mapanything.opv2v.layout import COMPLETE, FrameKey, scan

# Many streets of one moment each: a network learns more from another street than from the same one a moment later.
SAMPLE = ("--agents", "3", "--frames", "1", "--image-size", "280x210", "--lidar-points", "30000")
SCENARIOS = {"train": 26, "validate": 3, "test": 4}
FEW = {"train": 2, "validate": 1, "test": 1}
RESOLUTION = ("84", "56")
VEHICLES = 7  # that the network can tell apart: the most there are in OPV2V
RUNS = ("opv2v_ft_stage1", "opv2v_coop_stage2_full", "opv2v_coop_stage3_varviews")
BEST = "checkpoint-best.pth"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the tiny network's training; rates are far above the real one's, which starts from learnt weights."""

    epochs: int
    images: int
    lr: float
    overrides: tuple[str, ...] = ()


# The vehicles' embeddings start at zero and have to be learnt before the rest forgets what stage 1 taught it. Single vehicles
# among the samples keep it from that too.
_SINGLE = "dataset.coop_single_share=0.33"
_VEHICLE_ID = (f"model.vehicle_id.num_roles={VEHICLES}", "+train_params.submodule_lr.vehicle_id=2e-2")
STAGES = (
    Stage(24, 8, 1e-3, ("model.pretrained=null",)),
    Stage(22, 8, 4e-4, (*_VEHICLE_ID, _SINGLE)),
    Stage(8, 10, 2e-4, (*_VEHICLE_ID, _SINGLE, "model.encoder.gradient_checkpointing=false")),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command, `python -m <module> <arguments>`, and what it leaves behind."""

    title: str
    module: str  # of mapanything
    arguments: tuple[str | Path, ...]
    result: Path | None = None

    def command(self) -> list[str]:
        return ["-m", f"mapanything.{self.module}", *map(str, self.arguments)]


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
    raise InputError(f"{root}: no frame has its YAML, cloud and four images; `./invoke check-data` says what is missing")


def sample_steps(work: Path, images: Path, depth: Path, few: bool, jobs: tuple[str, ...]) -> list[Step]:
    """`--overwrite` replaces an earlier demo's data set."""
    scenarios = FEW if few else SCENARIOS
    which = ("--splits", ",".join(scenarios), "--scenarios", ",".join(map(str, scenarios.values())))
    data = work / "data"
    return [
        Step("make a data set", "tools.make_sample", ("--output", data, "--overwrite", *which, *SAMPLE, *jobs), data),
        Step("check it, with its depth", "tools.check_opv2v", ("--root", images, "--depth-root", depth, "--deep", *jobs)),
    ]


def data_steps(work: Path, images: Path, jobs: tuple[str, ...]) -> list[Step]:
    """The steps with any data set, generated or real. Each root's depth maps have a folder of their own."""
    depth = lidar_depth(work, images)
    report = work / "check.json"
    roots = ("--root", images, "--depth-root", depth)
    return [
        Step("make depth maps from the clouds", "tools.make_depth", (*roots, "--overwrite", *jobs), depth),
        Step("check the data and these depth maps", "tools.check_opv2v", (*roots, "--report", report, *jobs), report),
    ]


def lidar_depth(work: Path, images: Path) -> Path:
    return work / f"lidar_depth_{blake2b(os.fsencode(images.resolve()), digest_size=4).hexdigest()}"


def training_steps(work: Path, images: Path, depth: Path, few: bool) -> list[Step]:
    """Stages 1 to 3 with the tiny network on the CPU."""
    cores = min(2, len(os.sched_getaffinity(0)))
    steps = []
    for number, (name, stage) in enumerate(zip(RUNS, STAGES, strict=True), 1):
        settings = {
            "stage": f"stage{number}",
            "model": "mapanything_tiny",
            "resume": "false",
            "machine.opv2v_images_root": images,
            "machine.opv2v_depth_root": depth,
            "machine.root_experiments_dir": work / "runs",
            "machine.num_workers": 1,
            "distributed.device": "cpu",
            "distributed.world_size": cores,
            "dataset.resolution": f"[{','.join(RESOLUTION)}]",
            "train_params.max_num_of_imgs_per_gpu": stage.images,
            "train_params.lr": f"{stage.lr:g}",
            "train_params.epochs": 1 if few else stage.epochs,
            "train_params.print_every": 100,
        }
        words = (*(f"{key}={value}" for key, value in settings.items()), *stage.overrides)
        steps.append(Step(f"train stage {number}", "train.training", words, work / "runs" / name))
    return steps


def result_steps(work: Path, images: Path, depth: Path, pictures: Path) -> list[Step]:
    """Figures, files and pictures of what the networks predict for a split they were not trained on."""
    of = ("--root", images, "--split", "test")
    models = [f"stage{number}={work / 'runs' / name / BEST}" for number, name in enumerate(RUNS, 1)]
    measured, predicted = work / "evaluation", work / "predictions"
    last = work / "runs" / RUNS[-1] / BEST
    evaluation = ("--depth-root", depth, "--resolution", *RESOLUTION, "--models", *models, "--out", measured, "--overwrite")
    inference = ("--coop", "--limit", "1", "--checkpoint", last, "--resolution", *RESOLUTION, "--save-pred-dir", predicted)
    seen = ("--root", images, "--prediction", predicted)
    compare, shown = pictures / "demo_compare.png", pictures / "demo_depth.png"
    return [
        Step("measure the three stages", "tools.evaluate", (*of, *evaluation, "--worst", "1"), measured / "summary.md"),
        Step("predict a scene", "tools.infer", (*of, *inference, "--overwrite"), predicted),
        Step("draw prediction and LiDAR", "tools.viz", ("compare", *seen, "--output", compare), compare),
        Step("draw its depth", "tools.viz", ("depth", *seen, "--depth-root", depth, "--output", shown), shown),
    ]


def picture_steps(images: Path, pictures: Path) -> list[Step]:
    key = first_complete_frame(images)
    of = ("--split", key.split, "--sequence", key.scenario, f"--agent={key.agent}", "--frame", key.frame)
    return [
        Step(f"draw {title}", "tools.viz", (kind, "--root", images, *of, "--output", target), target)
        for kind, title in (("pose", "cameras, boxes and clouds"), ("frame", "clouds and boxes over the images"))
        for target in (pictures / f"demo_{kind}.png",)
    ]


def overfit_roots(work: Path, images: Path, depth: Path) -> tuple[Path, Path]:
    """Image and depth root of one timestamp, as links: many times to train with, once to measure.

    Every split has the same timestamp under scenario names of its own, so that the steps are those of a whole data set.
    """
    key = first_complete_frame(images)
    roots = work / "one_timestamp" / "opv2v_images", work / "one_timestamp" / "opv2v_depth"
    for folder, _, files in os.walk(roots[0].parent, topdown=False):
        for name in files:
            if (path := Path(folder, name)).is_symlink():  # an earlier demo's; nothing else is touched
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)
    number = 0
    for split, count in SCENARIOS.items():
        for _ in range(count):
            name = f"{key.scenario[:-5]}{number // 60:02d}_{number % 60:02d}"
            number += 1
            for root, source in zip(roots, (images, depth), strict=True):
                for path in (source / key.split / key.scenario).glob(f"*/{key.frame}*"):
                    link = root / split / name / path.parent.name / path.name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path.resolve())
    return roots


def main() -> int:
    arguments = DEMO.parse()
    jobs = ("--jobs", arguments.jobs) if arguments.jobs else ()
    work: Path = arguments.output
    images = arguments.root or work / "data" / "opv2v_images"
    pictures = Path("visualization_outputs") / date.today().isoformat()
    done: list[tuple[Step, float]] = []

    def run_all(steps: list[Step]) -> None:
        done.extend((step, run(step)) for step in steps)

    depth = work / "data" / "opv2v_depth"
    if arguments.root is None:
        run_all(sample_steps(work, images, depth, arguments.short, jobs))
    run_all(data_steps(work, images, jobs))
    run_all(picture_steps(images, pictures))
    if arguments.root is not None:
        images, depth = overfit_roots(work, images, lidar_depth(work, images))
    run_all(training_steps(work, images, depth, arguments.short))
    run_all(result_steps(work, images, depth, pictures))

    print(f"\n{'step':<42} {'time':>8}  result")
    for step, seconds in done:
        print(f"{step.title:<42} {seconds:>6.1f} s  {step.result if step.result is not None else ''}".rstrip())
    print(f"{'together':<42} {sum(seconds for _, seconds in done):>6.1f} s")
    if arguments.root is not None:
        print("the figures are of the timestamp that was trained: they show that it can be learnt, not that anything else was")
    return 0


if __name__ == "__main__":
    run_command(main)
