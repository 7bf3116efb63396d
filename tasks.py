"""Every task is one command line, `python -m mapanything...`, which is printed before it runs and can be typed as well.

Imports nothing but the standard library and Invoke, so that `invoke --list` answers at once. Relative paths in options
are meant from where Invoke was called; everything runs in the repository's root. A task ends with its command's exit
code: 0 done, 1 the verdict is bad, 2 bad input.
"""

from __future__ import annotations

import os
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
    if value is not None:
        value = os.path.expanduser(value)
        if Path.cwd() != ROOT:
            value = os.path.abspath(value)
    return option(name, value)


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
