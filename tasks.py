"""Every task is one command line, `python -m mapanything...`, which is printed before it runs and can be typed as well.

Imports nothing but the standard library and Invoke, so that `invoke --list` answers at once. Relative paths in options
are meant from where Invoke was called; everything runs in the repository's root. A task ends with its command's exit
code: 0 done, 1 the verdict is bad, 2 bad input.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from invoke import Context, Exit, task

ROOT = Path(__file__).resolve().parent

DATA_HELP = {
    "root": "folder that holds the splits, with images, YAML and clouds (default: data/opv2v_images)",
    "depth-root": "folder of the same shape that holds the depth maps (default: data/opv2v_depth)",
    "split": "train, validate, test, test_culver_city; several with commas or by repeating (default: all there are)",
    "scenario": "only this one, e.g. 2021_08_16_22_26_54; several with commas or by repeating",
    "agent": "only this vehicle, e.g. 641; several with commas or by repeating",
    "frame": "only this timestamp, e.g. 000069; several with commas or by repeating",
    "jobs": "processes to work with (default: one per core)",
}
SELECTION = ["split", "scenario", "agent", "frame"]


def run(*command: str) -> None:
    """Runs a command in the repository's root with this interpreter; its exit code becomes Invoke's."""
    sys.stdout.flush()
    print(f"$ {shlex.join(['python', *command])}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    # A scheduler's or container's stop signal reaches Invoke only. Ctrl-C reaches both, so it is just waited out.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)
    code = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code:
        raise Exit(code=128 - code if code < 0 else code)  # killed by signal n: 128 + n, as a shell says it


def option(name: str, value: str | bool | Iterable[str] | None) -> list[str]:
    """`--name value` as arguments; nothing where no value was given. Several values are joined by commas."""
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [f"--{name}"]
    text = value if isinstance(value, str) else ",".join(value)
    # `--agent=-1`: a value that starts with a dash would be read as an option.
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def path_option(name: str, value: str | None) -> list[str]:
    """As `option`, for a path that was given relative to where Invoke was called."""
    return option(name, None if value is None else called_path(value))


def called_path(path: str) -> str:
    """A path that was given relative to where Invoke was called, as it is from the repository's root."""
    path = os.path.expanduser(path)
    return path if Path.cwd() == ROOT else os.path.abspath(path)


def after_dashes() -> list[str]:
    """What follows `--` on the command line, as it was typed (Invoke's own `Context.remainder` loses the quotes)."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


def selection(split: list[str], scenario: list[str], agent: list[str], frame: list[str]) -> list[str]:
    named = {"split": split, "scenario": scenario, "agent": agent, "frame": frame}
    for argument, following in pairwise([*sys.argv, "--"]):
        name = argument.removeprefix("--")
        # Invoke lets an iterable option pass without a value, and everything would be taken.
        if argument.startswith("--") and name in named and following.startswith("--"):
            raise Exit(f"--{name} needs a value: {DATA_HELP[name]}", code=2)
    return [argument for name, value in named.items() for argument in option(name, value)]


@task(help={"name": "the task to explain"}, positional=["name"], auto_shortflags=False)
def help(_: Context, name: str) -> None:
    """Explains a task and its options (as does `invoke --help TASK`)."""
    run("-m", "invoke", "--help", name)


@task(help={"json": "print the findings as JSON instead of a table"}, auto_shortflags=False)
def doctor(_: Context, json: bool = False) -> None:
    """Compares this machine with what the project needs and says how to fix what is wrong."""
    run("-m", "mapanything.tools.doctor", *option("json", json))


@task(
    help={
        "images": "folder that holds the splits, with images, YAML and clouds",
        "depth": "folder of the same shape that holds the depth maps",
    },
    auto_shortflags=False,
)
def link_data(_: Context, images: str | None = None, depth: str | None = None) -> None:
    """Points data/opv2v_images and data/opv2v_depth at the folders where the data lies."""
    run("-m", "mapanything.tools.link_data", *path_option("images", images), *path_option("depth", depth))


@task(
    help=DATA_HELP
    | {
        "depth-pattern": "names of the depth maps, such as {split}/{scenario}/{agent}/{frame}_camera{camera}_depth.npy",
        "quick": "names and sizes only",
        "deep": "decode and measure everything",
        "report": "write the findings to this .json or .csv file",
        "write-exclude": "write what training must skip to this file",
    },
    iterable=SELECTION,
    auto_shortflags=False,
)
def check_data(
    _: Context,
    root: str | None = None,
    depth_root: str | None = None,
    split: list[str] | None = None,
    scenario: list[str] | None = None,
    agent: list[str] | None = None,
    frame: list[str] | None = None,
    jobs: str | None = None,
    depth_pattern: str | None = None,
    quick: bool = False,
    deep: bool = False,
    report: str | None = None,
    write_exclude: str | None = None,
) -> None:
    """Finds every missing, corrupt or inconsistent file of a data set, in one run."""
    run(
        "-m",
        "mapanything.tools.check_opv2v",
        *path_option("root", root),
        *path_option("depth-root", depth_root),
        *selection(split or [], scenario or [], agent or [], frame or []),
        *option("jobs", jobs),
        *option("depth-pattern", depth_pattern),
        *option("quick", quick),
        *option("deep", deep),
        *path_option("report", report),
        *path_option("write-exclude", write_exclude),
    )


@task(
    help={name: text for name, text in DATA_HELP.items() if name != "jobs"},
    iterable=SELECTION,
    auto_shortflags=False,
)
def tree(
    _: Context,
    root: str | None = None,
    depth_root: str | None = None,
    split: list[str] | None = None,
    scenario: list[str] | None = None,
    agent: list[str] | None = None,
    frame: list[str] | None = None,
) -> None:
    """Shows the data tree in short: scenarios, vehicles, frames and how many of them are complete."""
    run(
        "-m",
        "mapanything.tools.tree",
        *path_option("root", root),
        *path_option("depth-root", depth_root),
        *selection(split or [], scenario or [], agent or [], frame or []),
    )


@task(
    help=DATA_HELP
    | {
        "depth-root": "folder to write the depth maps to (default: data/opv2v_depth)",
        "depth-pattern": "names of the depth maps, such as {split}/{scenario}/{agent}/{frame}_camera{camera}_depth.npy",
        "format": "npy (float32 metres), png (16 bit, 1/256 m) or both",
        "overwrite": "make depth maps again that are there already",
    },
    iterable=SELECTION,
    auto_shortflags=False,
)
def make_depth(
    _: Context,
    root: str | None = None,
    depth_root: str | None = None,
    split: list[str] | None = None,
    scenario: list[str] | None = None,
    agent: list[str] | None = None,
    frame: list[str] | None = None,
    jobs: str | None = None,
    depth_pattern: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> None:
    """Projects LiDAR clouds into depth maps of all cameras."""
    run(
        "-m",
        "mapanything.tools.make_depth",
        *path_option("root", root),
        *path_option("depth-root", depth_root),
        *selection(split or [], scenario or [], agent or [], frame or []),
        *option("jobs", jobs),
        *option("depth-pattern", depth_pattern),
        *option("format", format),
        *option("overwrite", overwrite),
    )


@task(
    help={
        "output": "folder to write opv2v_images and opv2v_depth to; new, empty or an earlier sample",
        "overwrite": "replace an earlier sample",
        "seed": "another number, another town; same options, same bytes",
        "splits": "splits to write, with commas",
        "scenarios": "scenarios per split",
        "agents": "vehicles with sensors per scenario, 2 to 7",
        "frames": "timestamps per scenario",
        "image-size": "image size as WIDTHxHEIGHT",
        "lidar-channels": "lines of a LiDAR sweep",
        "lidar-points": "rays of a LiDAR sweep",
        "no-depth": "leave out the depth maps",
        "tests-only": "mark the roots so that no training run accepts them",
        "jobs": DATA_HELP["jobs"],
    },
    auto_shortflags=False,
)
def make_sample(
    _: Context,
    output: str | None = None,
    overwrite: bool = False,
    seed: str | None = None,
    splits: str | None = None,
    scenarios: str | None = None,
    agents: str | None = None,
    frames: str | None = None,
    image_size: str | None = None,
    lidar_channels: str | None = None,
    lidar_points: str | None = None,
    no_depth: bool = False,
    tests_only: bool = False,
    jobs: str | None = None,
) -> None:
    """Writes a synthetic OPV2V data set: several vehicles, images, depth, clouds, YAML."""
    run(
        "-m",
        "mapanything.tools.make_sample",
        *path_option("output", output),
        *option("overwrite", overwrite),
        *option("seed", seed),
        *option("splits", splits),
        *option("scenarios", scenarios),
        *option("agents", agents),
        *option("frames", frames),
        *option("image-size", image_size),
        *option("lidar-channels", lidar_channels),
        *option("lidar-points", lidar_points),
        *option("no-depth", no_depth),
        *option("tests-only", tests_only),
        *option("jobs", jobs),
    )


TRAIN_HELP = {
    "stage": "1 (one vehicle), 2 (several, eight views) or 3 (several, four to ten views)",
    "all": "stage 1, then 2, then 3; those that are done are skipped",
    "machine": "a file of configs/machine (default: default)",
    "resume": "there has to be something to resume",
    "fresh": "start over; what the run's folder holds is put aside in it",
    "nodes": "hosts that take part; run the same command on each",
    "node-rank": "this host's number, from 0",
    "rendezvous": "HOST:PORT of host 0",
    "keep-global-batch": "with fewer GPUs than the stage has, accumulate gradients",
    "o": "KEY=VALUE, any entry of the configuration; may be repeated",
    "dry-run": "print the command only",
}


def train_command(stage: int, machine: str, overrides: list[str], first: bool = True) -> list[str]:
    """The one command of a stage. In a chain, only the first stage's start can be told: the others have the one before."""
    if not first:
        overrides = [value for value in overrides if not value.startswith("model.pretrained=")]
    return ["-m", "mapanything.train.training", f"stage=stage{stage}", f"machine={machine}", *overrides]


@task(help=TRAIN_HELP, iterable=["o"], auto_shortflags=False)
def train(
    _: Context,
    stage: int = 0,
    all: bool = False,
    machine: str = "default",
    resume: bool = False,
    fresh: bool = False,
    nodes: str | None = None,
    node_rank: str | None = None,
    rendezvous: str | None = None,
    keep_global_batch: bool = False,
    o: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Trains one stage, or all three in a chain; interrupted, the same command goes on where it was."""
    if all == bool(stage) or stage not in (0, 1, 2, 3) or (resume and fresh):
        raise Exit("give --stage 1, 2 or 3, or --all; and --resume or --fresh, not both", code=2)
    settings = {
        "resume": "true" if resume else "false" if fresh else None,
        "distributed.nodes": nodes,
        "distributed.node_rank": node_rank,
        "distributed.rendezvous": rendezvous,
        "distributed.keep_global_batch": "true" if keep_global_batch else None,
    }
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None] + (o or [])
    stages = [1, 2, 3] if all else [stage]
    for number in stages:
        command = train_command(number, machine, overrides, first=number == stages[0])
        if dry_run:
            print(shlex.join(["python", *command]))
        else:
            run(*command)


@task(
    help={"root": "folder of the runs (default: experiments)", "json": "print JSON instead of a table"},
    auto_shortflags=False,
)
def runs(_: Context, root: str | None = None, json: bool = False) -> None:
    """Lists training runs: stage, epoch, best validation loss, state."""
    run("-m", "mapanything.tools.runs", *path_option("root", root), *option("json", json))


@task(
    help={name: text for name, text in DATA_HELP.items() if name != "jobs"}
    | {
        "depth-root": "depth maps, read only where depth is an input (default: data/opv2v_depth)",
        "agent": "only this vehicle; with --coop the vehicles that take part (default: all)",
        "agents": "the same as --agent",
        "frame": "only this timestamp, or a range: 000069-000080,000100; several with commas or by repeating",
        "limit": "only the first so many scenes of the selection",
        "coop": "all (chosen) vehicles of a timestamp as one scene",
        "main-agent": "with --coop, the vehicle whose LiDAR frame it is (default: 641, else the first)",
        "num-views": "most views of a scene, whole vehicles first (default: all cameras)",
        "checkpoint": "the network: .pth, .safetensors or a folder with config.json",
        "inputs": "what the network sees: images (default), and of intrinsics,poses,depth what is named",
        "resolution": "WIDTHxHEIGHT, multiples of 14 (default: 518x392; with --coop 448x252)",
        "save-pred-dir": "where the results go (default: visualization_outputs/<date>/predictions)",
        "cloud": "kinds of point cloud: pcd (default), ply, glb with commas, or none",
        "frame-of": "axes of the clouds: opv2v (default, as the LiDAR clouds are stored) or opencv",
        "device": "cpu, cuda (all GPUs), cuda:1 or several with commas (default: the GPUs, else cpu)",
        "amp": "bf16, fp16 or fp32 (default: bf16 on a GPU, fp32 on a CPU)",
        "overwrite": "make scenes anew that are there already",
    },
    iterable=[*SELECTION, "agents"],
    auto_shortflags=False,
)
def infer(
    _: Context,
    checkpoint: str | None = None,
    root: str | None = None,
    depth_root: str | None = None,
    split: list[str] | None = None,
    scenario: list[str] | None = None,
    agent: list[str] | None = None,
    agents: list[str] | None = None,
    frame: list[str] | None = None,
    limit: str | None = None,
    coop: bool = False,
    main_agent: str | None = None,
    num_views: str | None = None,
    inputs: str | None = None,
    resolution: str | None = None,
    save_pred_dir: str | None = None,
    cloud: str | None = None,
    frame_of: str | None = None,
    device: str | None = None,
    amp: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predicts depth, masks, point clouds and poses of any frames; goes on where a stopped run ended."""
    run(
        "-m",
        "mapanything.tools.infer",
        *path_option("checkpoint", checkpoint),
        *path_option("root", root),
        *path_option("depth-root", depth_root),
        *selection(split or [], scenario or [], [*(agent or []), *(agents or [])], frame or []),
        *option("limit", limit),
        *option("coop", coop),
        *option("main-agent", main_agent),
        *option("num-views", num_views),
        *option("inputs", inputs),
        *option("resolution", resolution),
        *path_option("save-pred-dir", save_pred_dir),
        *option("cloud", cloud),
        *option("frame-of", frame_of),
        *option("device", device),
        *option("amp", amp),
        *option("overwrite", overwrite),
        *after_dashes(),
    )


def models_option(models: Iterable[str]) -> list[str]:
    """`--models NAME=PATH...`; the paths are meant from where Invoke was called."""
    words = []
    for word in (word for text in models for word in re.split(r"[,\s]\s*(?=[\w.+-]+=)", text.strip())):
        name, equals, path = word.partition("=")
        words.append(f"{name}={called_path(path)}" if equals and path else word)
    return ["--models", *words] if words else []


@task(
    help={name: text for name, text in DATA_HELP.items() if name != "jobs"}
    | {
        "models": "NAME=PATH of a checkpoint; several with commas or by repeating",
        "depth-root": "depth maps to measure with (default: data/opv2v_depth; none: there are none)",
        "split": "train, validate, test, test_culver_city (default: test, else validate)",
        "frame": "only this timestamp, or a range: 000069-000080,000100; several with commas or by repeating",
        "mode": "single (one vehicle a scene), coop (all of a timestamp) or both (default)",
        "frames": "file that lists split/scenario/frame or split/scenario/agent/frame lines",
        "sample": "draw so many timestamps (default: all of the selection)",
        "seed": "of every random choice (default: 0)",
        "main-agent": "where it is there, else the first vehicle (default: 641)",
        "min-agents": "timestamps with fewer vehicles are left out (default: 2; with --mode single 1)",
        "every-agent": "single: every vehicle of a timestamp, not the main agent alone",
        "inputs": "what the network sees: images (default), and of intrinsics,poses,depth what is named",
        "num-views": "most views of a scene, whole vehicles first (default: 8)",
        "resolution": "WIDTHxHEIGHT, multiples of 14 (default: single 518x392, coop 448x252)",
        "device": "cpu, cuda or cuda:1 (default: a GPU where there is one)",
        "amp": "bf16, fp16 or fp32 (default: bf16 on a GPU, fp32 on a CPU)",
        "reference": "true cloud: depth (default), the views' known depths, or lidar, the sweeps",
        "z-range": "LOW,HIGH of the filtered figures, metres above the LiDAR (default: -3,1)",
        "radius": "of the filtered figures, metres (default: 50)",
        "bev-cell": "cell of the view from above, metres (default: 0.5)",
        "bev-extent": "of the view from above, metres to each side (default: 50)",
        "chamfer-points": "points of each cloud that look for their neighbour (default: 200000)",
        "out": "where the results go (default: visualization_outputs/<date>/evaluation)",
        "overwrite": "replace the evaluation that lies there",
        "worst": "pictures of so many worst scenes per model and mode (default: 3)",
        "rank-by": "the metric that says which are the worst (default: pose_translation_m)",
        "save-representative": "export the best, middle and worst scene per model and mode, as infer does",
    },
    iterable=[*SELECTION, "models"],
    auto_shortflags=False,
)
def evaluate(
    _: Context,
    models: list[str] | None = None,
    mode: str | None = None,
    root: str | None = None,
    depth_root: str | None = None,
    split: list[str] | None = None,
    scenario: list[str] | None = None,
    agent: list[str] | None = None,
    frame: list[str] | None = None,
    frames: str | None = None,
    sample: str | None = None,
    seed: str | None = None,
    main_agent: str | None = None,
    min_agents: str | None = None,
    every_agent: bool = False,
    inputs: str | None = None,
    num_views: str | None = None,
    resolution: str | None = None,
    device: str | None = None,
    amp: str | None = None,
    reference: str | None = None,
    z_range: str | None = None,
    radius: str | None = None,
    bev_cell: str | None = None,
    bev_extent: str | None = None,
    chamfer_points: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    worst: str | None = None,
    rank_by: str | None = None,
    save_representative: bool = False,
) -> None:
    """Measures checkpoints side by side: pose, depth, scale, Chamfer, BEV; the network sees images only."""
    run(
        "-m",
        "mapanything.tools.evaluate",
        *models_option(models or []),
        *option("mode", mode),
        *path_option("root", root),
        *(option if depth_root == "none" else path_option)("depth-root", depth_root),
        *selection(split or [], scenario or [], agent or [], frame or []),
        *path_option("frames", frames),
        *option("sample", sample),
        *option("seed", seed),
        *option("main-agent", main_agent),
        *option("min-agents", min_agents),
        *option("every-agent", every_agent),
        *option("inputs", inputs),
        *option("num-views", num_views),
        *option("resolution", resolution),
        *option("device", device),
        *option("amp", amp),
        *option("reference", reference),
        *option("z-range", z_range),
        *option("radius", radius),
        *option("bev-cell", bev_cell),
        *option("bev-extent", bev_extent),
        *option("chamfer-points", chamfer_points),
        *path_option("out", out),
        *option("overwrite", overwrite),
        *option("worst", worst),
        *option("rank-by", rank_by),
        *option("save-representative", save_representative),
        *after_dashes(),
    )


@task(
    help={
        "kind": "pose (clouds, boxes and cameras in space) or frame (LiDAR and boxes drawn over the four images)",
        "root": DATA_HELP["root"],
        "split": "the split that holds the sequence",
        "sequence": "scenario, e.g. 2021_08_16_22_26_54",
        "agent": "vehicle, e.g. 641",
        "frame": "timestamp, e.g. 000069",
        "single": "only this vehicle, not the others of the timestamp",
        "output": "the PNG to write (default: below visualization_outputs/<date>/)",
    },
    positional=["kind"],
    auto_shortflags=False,
)
def viz(
    _: Context,
    kind: str,
    root: str | None = None,
    split: str | None = None,
    sequence: str | None = None,
    agent: str | None = None,
    frame: str | None = None,
    single: bool = False,
    output: str | None = None,
) -> None:
    """Draws a frame into a PNG, without a display. What follows `--` goes to `mapanything.tools.viz`."""
    run(
        "-m",
        "mapanything.tools.viz",
        kind,
        *path_option("root", root),
        *option("split", split),
        *option("sequence", sequence),
        *option("agent", agent),
        *option("frame", frame),
        *option("single", single),
        *path_option("output", output),
        *after_dashes(),
    )


@task(
    help={
        "root": "use this data set instead of a generated one",
        "output": "work folder of the demo (default: experiments/demo)",
        "jobs": DATA_HELP["jobs"],
    },
    auto_shortflags=False,
)
def demo(_: Context, root: str | None = None, output: str | None = None, jobs: str | None = None) -> None:
    """Runs the whole flow on a generated data set, on the CPU, in minutes."""
    run(
        "-m",
        "mapanything.tools.demo",
        *path_option("root", root),
        *path_option("output", output),
        *option("jobs", jobs),
    )


@task(
    help={
        "match": "only tests whose names match, as pytest's -k",
        "jobs": "processes (default: one per core; 0: in this process, for debuggers)",
    },
    auto_shortflags=False,
)
def test(_: Context, match: str | None = None, jobs: str = "auto") -> None:
    """Runs the tests in parallel. What follows `--` goes to pytest: `invoke test -- -x tests/opv2v`."""
    run("-m", "pytest", "-n", jobs, *(["-k", match] if match else []), *after_dashes())


@task(
    help={"fix": "repair and reformat what can be", "all": "a check whose tool is not to be had is an error, not left out"},
    auto_shortflags=False,
)
def lint(_: Context, fix: bool = False, all: bool = False) -> None:
    """Checks style, formatting, the locks, the shell scripts, the Dockerfile and the compose file."""
    run("-m", "ruff", "check", *option("fix", fix))
    run("-m", "ruff", "format", *([] if fix else ["--check"]))
    run("-m", "mapanything.tools.lock", "--check")
    run("-m", "mapanything.tools.lint", *option("all", all))


@task(
    help={
        "what": "data",
        "root": "image root whose first complete frame is used (default: data/opv2v_images, else generated)",
        "rounds": "timed rounds",
        "json": "write the figures to this file too",
    },
    positional=["what"],
    auto_shortflags=False,
)
def bench(_: Context, what: str, root: str | None = None, rounds: str | None = None, json: str | None = None) -> None:
    """Measures speed, each against a plain reference in the same run."""
    run(
        "-m",
        "mapanything.tools.bench",
        what,
        *path_option("root", root),
        *option("rounds", rounds),
        *path_option("json", json),
    )


@task(
    help={
        "check": "only say whether the locks fit requirements/base.in; needs no network",
        "upgrade": "take the newest versions instead of keeping pins",
    },
    auto_shortflags=False,
)
def lock(_: Context, check: bool = False, upgrade: bool = False) -> None:
    """Renews the hash-locked requirements, one file per torch variant."""
    run("-m", "mapanything.tools.lock", *option("check", check), *option("upgrade", upgrade))


@task(
    help={
        "variant": "cuda (default) or cpu: which torch is in it",
        "tag": "name of the image (default: mapanything-opv2v:VARIANT)",
        "wheels": "folder with wheels that pip's index does not have, such as torch's CPU wheel (default: PIP_FIND_LINKS)",
        "base": "Debian bookworm image to build on (default: debian:bookworm-slim)",
        "snapshot": "URL of a dated Debian archive that all system packages come from",
        "no-cache": "build every layer anew",
        "save": "then write the image to this .tar or .tar.gz, for a host without internet",
        "load": "take an image that --save wrote; nothing is built",
        "verify": "build twice without cache and compare packages, files and layers",
    },
    auto_shortflags=False,
)
def image(
    _: Context,
    variant: str | None = None,
    tag: str | None = None,
    wheels: str | None = None,
    base: str | None = None,
    snapshot: str | None = None,
    no_cache: bool = False,
    save: str | None = None,
    load: str | None = None,
    verify: bool = False,
) -> None:
    """Builds the container image, carries it to other hosts, or shows that it can be built again as it is."""
    run(
        "-m",
        "mapanything.tools.image",
        *option("variant", variant),
        *option("tag", tag),
        *path_option("wheels", wheels),
        *option("base", base),
        *option("snapshot", snapshot),
        *option("no-cache", no_cache),
        *path_option("save", save),
        *path_option("load", load),
        *option("verify", verify),
    )


@task(
    help={
        "stage": "of training: 1, 2 or 3 (default)",
        "gpu-gb": "memory that the card is sold with (default: 24)",
        "model": "a file of configs/model (default: mapanything, which is v1.1)",
        "views": "views of a scene; several with commas (default: the stage's)",
        "batch": "scenes at a time; several with commas (default: the stage's budget of images, divided by the views)",
        "resolution": "image size as WIDTHxHEIGHT; several with commas (default: the stage's and the other one in use)",
        "world-size": "GPUs (default: the stage's)",
        "o": "KEY=VALUE, any entry of the configuration; may be repeated",
        "measure": "run the step on this machine's GPU and compare it with its plan",
        "json": "print JSON instead of a table",
        "jobs": DATA_HELP["jobs"],
    },
    iterable=["o"],
    auto_shortflags=False,
)
def plan_memory(
    _: Context,
    stage: str | None = None,
    gpu_gb: str | None = None,
    model: str | None = None,
    views: str | None = None,
    batch: str | None = None,
    resolution: str | None = None,
    world_size: str | None = None,
    o: list[str] | None = None,
    measure: bool = False,
    json: bool = False,
    jobs: str | None = None,
) -> None:
    """Says what fits on a card before it is tried: batches × ways to save memory, traced without a GPU."""
    run(
        "-m",
        "mapanything.tools.plan_memory",
        *option("stage", stage),
        *option("gpu-gb", gpu_gb),
        *option("model", model),
        *option("views", views),
        *option("batch", batch),
        *option("resolution", resolution),
        *option("world-size", world_size),
        *(argument for entry in o or [] for argument in option("o", entry)),
        *option("measure", measure),
        *option("json", json),
        *option("jobs", jobs),
    )
