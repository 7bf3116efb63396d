"""Every task is one command line, `python -m mapanything...`, which is printed before it runs and can be typed as well.

Imports nothing but the standard library and Invoke, so that `./invoke --list` answers at once. Relative paths in options
are meant from where Invoke was called; everything runs in the repository's root. What follows `--` goes to the command as
it is. A task ends with its command's exit code: 0 done, 1 the verdict is bad, 2 bad input.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial, update_wrapper
from types import SimpleNamespace

from invoke import Exit, Task

from task_options import (
    Option,
    as_named_paths,
    as_path,
    as_repeated,
    as_value,
    flag,
    path,
    position,
    run,
    several,
    typed,
    value,
    with_options,
)


def command(module: str, *options: Option) -> Callable[[Callable[[], None]], Task]:
    """Makes a task that runs `python -m mapanything.MODULE` with the options that are given and what follows `--`."""

    def make(function: Callable[[], None]) -> Task:
        def body(given: SimpleNamespace) -> None:
            run("-m", module if module.startswith("dev.") else f"mapanything.{module}", *given.words, *typed()[1])

        return with_options(*options)(update_wrapper(body, function))

    return make


# Options of more than one task

ROOT_OPTION = path("root", "folder that holds the splits, with images, YAML and clouds (default: data/opv2v_images)")
DEPTH_ROOT = path("depth-root", "folder of the same shape that holds the depth maps (default: data/opv2v_depth)")
DATA = (
    ROOT_OPTION,
    DEPTH_ROOT,
    several("split", "train, validate, test, test_culver_city; several with commas or by repeating (default: all there are)"),
    several("scenario", "only this one, e.g. 2021_08_16_22_26_54; several with commas or by repeating"),
    several("agent", "only this vehicle, e.g. 641; several with commas or by repeating"),
    several("frame", "only this timestamp, e.g. 000069; several with commas or by repeating"),
)
FRAMES = several("frame", "only this timestamp, or a range: 000069-000080,000100; several with commas or by repeating")
ONE_FRAME = (
    value("split", "train, validate, test, ... (default: the first there is)"),
    value("scenario", "e.g. 2021_08_16_22_26_54 (default: the first there is)"),
    value("agent", "the main vehicle, e.g. 641 (default: the first there is)"),
    value("frame", "timestamp, e.g. 000069 (default: the first there is)"),
)
JOBS = value("jobs", "processes to work with (default: one per core)")
DEPTH_PATTERN = value(
    "depth-pattern", "names of the depth maps, such as {split}/{scenario}/{agent}/{frame}_camera{camera}_depth.npy"
)
INPUTS = value("inputs", "what the network sees: images (default), and of intrinsics,poses,depth what is named")
AMP = value("amp", "bf16, fp16 or fp32 (default: bf16 on a GPU, fp32 on a CPU)")
OVERRIDES = several("o", "KEY=VALUE, any entry of the configuration; may be repeated", words=as_repeated)
STAGES = ("1", "2", "3")
JSON = flag("json", "print JSON instead of a table")

# This machine and the data


@with_options(position("name", "the task to explain"))
def help(given: SimpleNamespace) -> None:
    """Explains a task and its options (as does `./invoke --help TASK`)."""
    run("-m", "invoke", "--help", given.name)


@command("tools.doctor", flag("json", "print the findings as JSON instead of a table"))
def doctor() -> None:
    """Compares this machine with what the project needs and says how to fix what is wrong."""


@command(
    "tools.link_data",
    path("images", "folder that holds the splits, with images, YAML and clouds"),
    path("depth", "folder of the same shape that holds the depth maps"),
)
def link_data() -> None:
    """Points data/opv2v_images and data/opv2v_depth at the folders where the data lies."""


@command(
    "tools.check_opv2v",
    *DATA,
    JOBS,
    DEPTH_PATTERN,
    flag("quick", "names and sizes only"),
    flag("deep", "decode and measure everything"),
    path("report", "write the findings to this .json or .csv file"),
    path("write-exclude", "write what training must skip to this file"),
)
def check_data() -> None:
    """Finds every missing, corrupt or inconsistent file of a data set, in one run."""


@command("tools.tree", *DATA)
def tree() -> None:
    """Shows the data tree in short: scenarios, vehicles, frames and how many of them are complete."""


@command(
    "tools.make_depth",
    *DATA,
    path("depth-root", "folder to write the depth maps to (default: data/opv2v_depth)"),
    JOBS,
    DEPTH_PATTERN,
    value("format", "npy (float32 metres), png (16 bit, 1/256 m) or both"),
    flag("overwrite", "make depth maps again that are there already"),
)
def make_depth() -> None:
    """Projects LiDAR clouds into depth maps of all cameras."""


@command(
    "tools.make_sample",
    path("output", "folder to write opv2v_images and opv2v_depth to; new, empty or an earlier sample"),
    flag("overwrite", "replace an earlier sample"),
    value("seed", "another number, another town; same options, same bytes"),
    value("splits", "splits to write, with commas"),
    value("scenarios", "scenarios per split; one number, or one for each with commas"),
    value("agents", "vehicles with sensors per scenario, 2 to 7"),
    value("frames", "timestamps per scenario"),
    value("image-size", "image size as WIDTHxHEIGHT"),
    value("lidar-channels", "lines of a LiDAR sweep"),
    value("lidar-points", "rays of a LiDAR sweep"),
    flag("no-depth", "leave out the depth maps"),
    flag("tests-only", "mark the roots so that no training run accepts them"),
    JOBS,
)
def make_sample() -> None:
    """Writes a synthetic OPV2V data set: several vehicles, images, depth, clouds, YAML."""


# The network


@with_options(
    value("stage", "1 (one vehicle), 2 (several, eight views) or 3 (several, four to ten views)"),
    flag("all", "stage 1, then 2, then 3; those that are done are skipped"),
    value("machine", "a file of configs/machine (default: default)", default="default"),
    flag("resume", "there has to be something to resume"),
    flag("fresh", "start over; what the run's folder holds is put aside in it"),
    value("nodes", "hosts that take part; run the same command on each"),
    value("node-rank", "this host's number, from 0"),
    value("rendezvous", "HOST:PORT of host 0"),
    flag("keep-global-batch", "with fewer GPUs than the stage has, accumulate gradients"),
    several(
        "o", "KEY=VALUE, any entry of the configuration; 2,3:KEY=VALUE for these stages; may be repeated", words=as_repeated
    ),
    flag("dry-run", "print the command only"),
)
def train(given: SimpleNamespace) -> None:
    """Trains one stage, or all three in a chain; interrupted, the same command goes on where it was."""
    chosen = STAGES if given.all else (str(given.stage),)
    if given.all == bool(given.stage) or not set(chosen) <= set(STAGES) or (given.resume and given.fresh):
        raise Exit("give --stage 1, 2 or 3, or --all; and --resume or --fresh, not both", code=2)
    settings = {
        "resume": "true" if given.resume else "false" if given.fresh else None,
        "distributed.nodes": given.nodes,
        "distributed.node_rank": given.node_rank,
        "distributed.rendezvous": given.rendezvous,
        "distributed.keep_global_batch": "true" if given.keep_global_batch else None,
    }
    common = [f"{key}={text}" for key, text in settings.items() if text is not None]
    overrides = [stages_and_override(text) for text in given.o]  # before anything runs
    for stage in chosen:
        # In a chain, a start that is told for all is the first stage's: the others have the one before.
        of_stage = [
            text
            for stages, text in overrides
            if (stage in stages if stages else stage == chosen[0] or not text.startswith("model.pretrained="))
        ]
        words = ["-m", "mapanything.train.training", f"stage=stage{stage}", f"machine={given.machine}", *common, *of_stage]
        if given.dry_run:
            print(shlex.join(["python", *words]))
        else:
            run(*words)


def stages_and_override(text: str) -> tuple[list[str], str]:
    """`2,3:KEY=VALUE` -> (["2", "3"], "KEY=VALUE"); no stages are named where it is for all."""
    stages, colon, override = text.partition(":")
    if not colon or "=" in stages:
        return [], text
    named = stages.split(",")
    if not set(named) <= set(STAGES) or "=" not in override:
        raise Exit(f"-o {text}: give KEY=VALUE, or the stages that it is for as 2:KEY=VALUE or 2,3:KEY=VALUE", code=2)
    return named, override


@command("tools.runs", path("root", "folder of the runs (default: experiments)"), JSON)
def runs() -> None:
    """Lists training runs: stage, epoch, best validation loss, state."""


@command(
    "tools.plan_memory",
    value("stage", "of training: 1, 2 or 3 (default)"),
    value("gpu-gb", "memory that the card is sold with (default: 24)"),
    value("model", "a file of configs/model (default: mapanything, which is v1.1)"),
    value("views", "views of a scene; several with commas (default: the stage's)"),
    value("batch", "scenes at a time; several with commas (default: the stage's budget of images, divided by the views)"),
    value("resolution", "image size as WIDTHxHEIGHT; several with commas (default: the stage's and the other one in use)"),
    value("world-size", "GPUs (default: the stage's)"),
    OVERRIDES,
    flag("measure", "run the step on this machine's GPU and compare it with its plan"),
    JSON,
    JOBS,
)
def plan_memory() -> None:
    """Says what fits on a card before it is tried: batches × ways to save memory, traced without a GPU."""


@command(
    "tools.infer",
    path("checkpoint", "the network: .pth, .safetensors or a folder with config.json"),
    *DATA,
    path("depth-root", "depth maps, read only where depth is an input (default: data/opv2v_depth)"),
    several("agent", "only this vehicle; with --coop the vehicles that take part (default: all)"),
    several("agents", "the same as --agent"),
    FRAMES,
    value("limit", "only the first so many scenes of the selection"),
    flag("coop", "all (chosen) vehicles of a timestamp as one scene"),
    value("main-agent", "with --coop, the vehicle whose LiDAR frame it is (default: 641, else the first)"),
    value("num-views", "most views of a scene, whole vehicles first (default: all cameras)"),
    INPUTS,
    value("resolution", "WIDTHxHEIGHT, multiples of 14 (default: 518x392; with --coop 448x252)"),
    path("save-pred-dir", "where the results go (default: visualization_outputs/<date>/predictions)"),
    value("cloud", "kinds of point cloud: pcd (default), ply, glb with commas, or none"),
    value("frame-of", "axes of the clouds: opv2v (default, as the LiDAR clouds are stored) or opencv"),
    value("device", "cpu, cuda (all GPUs), cuda:1 or several with commas (default: the GPUs, else cpu)"),
    AMP,
    flag("overwrite", "make scenes anew that are there already"),
)
def infer() -> None:
    """Predicts depth, masks, point clouds and poses of any frames; goes on where a stopped run ended."""


@command(
    "tools.evaluate",
    several("models", "NAME=PATH of a checkpoint; several with commas or by repeating", words=as_named_paths),
    value("mode", "single (one vehicle a scene), coop (all of a timestamp) or both (default)"),
    *DATA,
    value(
        "depth-root",
        "depth maps to measure with (default: data/opv2v_depth; none: there are none)",
        words=partial(as_path, but="none"),
    ),
    several("split", "train, validate, test, test_culver_city (default: test, else validate)"),
    FRAMES,
    path("frames", "file that lists split/scenario/frame or split/scenario/agent/frame lines"),
    value("sample", "draw so many timestamps (default: all of the selection)"),
    value("seed", "of every random choice (default: 0)"),
    value("main-agent", "where it is there, else the first vehicle (default: 641)"),
    value("min-agents", "timestamps with fewer vehicles are left out (default: 2; with --mode single 1)"),
    flag("every-agent", "single: every vehicle of a timestamp, not the main agent alone"),
    INPUTS,
    value("num-views", "most views of a scene, whole vehicles first (default: 8)"),
    value("resolution", "WIDTHxHEIGHT, multiples of 14 (default: single 518x392, coop 448x252)"),
    value("device", "cpu, cuda or cuda:1 (default: a GPU where there is one)"),
    AMP,
    value("reference", "true cloud: depth (default), the views' known depths, or lidar, the sweeps"),
    value("z-range", "LOW,HIGH of the filtered figures, metres above the LiDAR (default: -3,1)"),
    value("radius", "of the filtered figures, metres (default: 50)"),
    value("bev-cell", "cell of the view from above, metres (default: 0.5)"),
    value("bev-extent", "of the view from above, metres to each side (default: 50)"),
    value("chamfer-points", "points of each cloud that look for their neighbour (default: 200000)"),
    path("out", "where the results go (default: visualization_outputs/<date>/evaluation)"),
    flag("overwrite", "replace the evaluation that lies there"),
    value("worst", "pictures of so many worst scenes per model and mode (default: 3)"),
    value("rank-by", "the metric that says which are the worst (default: pose_translation_m)"),
    flag("save-representative", "export the best, middle and worst scene per model and mode, as infer does"),
)
def evaluate() -> None:
    """Measures checkpoints side by side: pose, depth, scale, Chamfer, BEV; the network sees images only."""


# Pictures


@command(
    "tools.viz",
    position(
        "kind", "pose, cloud, boxes, compare, depth, frame or sequence; left out: a sheet of the newest there is", ("viz", 1)
    ),
    position("what", "cloud: a .pcd, .ply or .glb file; sequence: pose, cloud or boxes; may be left out", ("viz", 2)),
    ROOT_OPTION,
    *ONE_FRAME,
    value("frame", "timestamp, e.g. 000069 (default: the first there is); sequence: also 000069-000080,000100 (default: all)"),
    value("sequence", "the same as --scenario"),
    flag("single", "only this vehicle, not the others of the timestamp"),
    path("prediction", "cloud, boxes, compare, depth, sequence: what infer wrote, or one scene's folder in it"),
    path("pred-pcd", "compare: a predicted cloud ..."),
    path("gt-pcd", "compare: ... and the true one, in the same frame"),
    path("depth-root", "depth: depth maps (default: data/opv2v_depth where there is one, else the LiDAR)"),
    path("output", "the .png (sequence: .mp4, .gif or a folder) to write (default: below visualization_outputs/<date>/)"),
    value("view", "sheet, chase, top, camera0 to camera3 or fit: one view only, or a sheet of them"),
    value("max-range", "metres shown to each side (default: 60, or all agents)"),
    value("camera-size", "of the cameras' frusta, metres (default: 2)"),
    value("point-size", "pixels (default: 1.5; frame: 3)"),
    value("color", "cloud, boxes, sequence: LiDAR points by height (default) or by agent"),
    value("hide", "layers to leave out, with commas: cloud, ground_truth, boxes, cameras, axes, paths, rings, names"),
    value("axes", "cloud, compare: of cloud files: opv2v (x forward, y right, z up; default) or opencv"),
    flag("no-3d", "pose, sequence: only the view from above, without Open3D"),
    flag("window", "pose, cloud, boxes, compare: Open3D's window instead of a file; needs a display"),
    flag("no-gui", "no window; so it is anyway"),
    flag("offscreen", "the same as --no-gui"),
    value("every", "sequence: only every N-th frame"),
    value("fps", "sequence: frames per second (default: 5)"),
    value("width", "sequence: make the pictures that narrow, pixels"),
    JOBS,
)
def viz() -> None:
    """Draws pictures as PNG, GIF or MP4, without a display: `./invoke viz boxes --max-range 60`."""


@command(
    "tools.viewer",
    ROOT_OPTION,
    path("predictions", "what infer wrote, as another layer"),
    value("host", "address to listen on; 0.0.0.0: all of this machine's (default: 127.0.0.1)"),
    value("port", "0: any free one (default: 8080)"),
    *ONE_FRAME,
    path("rrd", "write a Rerun recording of the agent's frames, or of --frame, to this .rrd file and end"),
)
def viewer() -> None:
    """Shows frames in the browser: points, boxes, cameras; says how to reach it from another machine."""


# For whoever works on it


@command(
    "tools.demo",
    path("root", "use this data set; trained, and measured, is its first complete timestamp"),
    path("output", "work folder of the demo (default: experiments/demo)"),
    flag("short", "hardly any training: shows that everything runs"),
    JOBS,
)
def demo() -> None:
    """Runs the whole flow on a generated data set, three stages of training included, on the CPU, in minutes."""


@with_options(
    value("match", "only tests whose names match, as pytest's -k"),
    value("jobs", "processes (default: one per core; 0: in this process, for debuggers)", default="auto"),
    flag("faults", "only the tests of faults, the long ones too, with 10,000 broken files per parser"),
)
def test(given: SimpleNamespace) -> None:
    """Runs the tests in parallel. What follows `--` goes to pytest: `./invoke test -- -x tests/opv2v`."""
    faults = ["-m", "faults", "--faults", "10000"] if given.faults else []
    run("-m", "pytest", "-n", given.jobs, *(["-k", given.match] if given.match else []), *faults, *typed()[1])


@with_options(
    flag("fix", "repair and reformat what can be"),
    flag("all", "a check whose tool is not to be had is an error, not left out"),
)
def lint(given: SimpleNamespace) -> None:
    """Checks style, formatting, the locks, the shell scripts, the Dockerfile and the compose file."""
    run("-m", "ruff", "check", *as_value("fix", given.fix))
    run("-m", "ruff", "format", *([] if given.fix else ["--check"]))
    run("-m", "dev.lock", "--check")
    run("-m", "dev.lint", *as_value("all", given.all))


@command(
    "dev.bench",
    position("what", "data, model, train, results, viz or all"),
    path("root", "image root whose first complete frame is used (default: data/opv2v_images, else generated)"),
    value("rounds", "timed rounds"),
    path("json", "write the figures to this file too"),
)
def bench() -> None:
    """Measures speed, each against a plain reference in the same run."""


@command(
    "dev.lock",
    flag("check", "only say whether the locks fit requirements/base.in; needs no network"),
    flag("dry-run", "only ask the index whether it has all that is locked; downloads nothing"),
    flag("upgrade", "take the newest versions instead of keeping pins"),
)
def lock() -> None:
    """Renews the hash-locked requirements, one file per torch variant."""


@command(
    "dev.image",
    value("variant", "cuda (default, CUDA 13), cuda12 or cpu: which torch is in it"),
    value("tag", "name of the image (default: mapanything-opv2v:VARIANT)"),
    path("wheels", "folder with wheels that pip's index does not have, such as torch's CPU wheel (default: PIP_FIND_LINKS)"),
    value("base", "Debian bookworm image to build on (default: debian:bookworm-slim)"),
    value("snapshot", "URL of a dated Debian archive that all system packages come from"),
    flag("no-cache", "build every layer anew"),
    path("save", "then write the image to this .tar or .tar.gz, for a host without internet"),
    path("load", "take an image that --save wrote; nothing is built"),
    flag("verify", "build twice without cache and compare packages, files and layers"),
)
def image() -> None:
    """Builds the container image, carries it to other hosts, or shows that it can be built again as it is."""
