"""The tables of the commands that see to this machine and the data, and the options that choose data."""

from __future__ import annotations

import os
from pathlib import Path

from mapanything.cli.options import Option, file, flag, folder, group, several, tool
from mapanything.cli.types import positive

IMAGES, DEPTH = Path("data/opv2v_images"), Path("data/opv2v_depth")
SEVERAL = "several with commas or by repeating"
SPLITS = "train, validate, test, test_culver_city"
DEPTH_PATTERN = "{split}/{scenario}/{agent}/{frame}_camera{camera}_depth.npy"

IMAGE_ROOT = folder("root", "folder that holds the splits, with images, YAML and clouds", IMAGES, also=("dataset-root",))
DEPTH_ROOT = folder("depth-root", "folder of the same shape that holds the depth maps", otherwise=str(DEPTH))
DATA = (
    IMAGE_ROOT,
    DEPTH_ROOT,
    several("split", f"{SPLITS}; {SEVERAL}", otherwise="all there are"),
    several("scenario", f"only this one, e.g. 2021_08_16_22_26_54; {SEVERAL}", also=("sequence",)),
    several("agent", f"only this vehicle, e.g. 641; {SEVERAL}"),
    several("frame", f"only this timestamp, e.g. 000069; {SEVERAL}"),
)
FRAMES = several("frame", f"only this timestamp, or a range: 000069-000080,000100; {SEVERAL}")


def one_frame(title: str) -> tuple[Option, ...]:
    """Options that name one frame, under a title."""
    return group(
        f"{title} (what is not named is the first there is)",
        IMAGE_ROOT,
        Option("split", "train, validate, test, ...", otherwise="the first there is"),
        Option("scenario", "e.g. 2021_08_16_22_26_54", otherwise="the first there is", also=("sequence",)),
        Option("agent", "the main vehicle, e.g. 641", otherwise="the first there is"),
        Option("frame", "timestamp, e.g. 000069", otherwise="the first there is"),
    )


CORES = len(os.sched_getaffinity(0))
JOBS = Option("jobs", "processes", CORES, f"one per core, {CORES} here", type=positive)
PATTERN = Option("depth-pattern", "where a depth map lies below its root", DEPTH_PATTERN, metavar="PATTERN")
JSON = flag("json", "print JSON instead of a table")
OVERWRITE = flag("overwrite", "make anew what is there already")

DOCTOR = tool("doctor", "Compares this machine with what the project needs and says how to fix what is wrong.", JSON)
LINK_DATA = tool(
    "link-data",
    f"Points {IMAGES} and {DEPTH} at the folders where the data lies.",
    folder("images", "folder that holds the splits, with images, YAML and clouds"),
    folder("depth", "folder of the same shape that holds the depth maps"),
)
CHECK_DATA = tool(
    "check-data",
    "Finds every missing, corrupt or inconsistent file of a data set, in one run.",
    *DATA,
    folder("depth-root", "depth maps to check", otherwise=f"{DEPTH} where no other --root is given, else none"),
    JOBS,
    PATTERN,
    flag("quick", "names and sizes only: seconds", either="level"),
    flag("deep", "decode and measure everything", either="level"),
    file("report", "write every problem to this .json or .csv file"),
    file("write-exclude", "write what training must skip to this file"),
    flag("progress", "a progress bar, also where nobody watches a terminal", either="bar"),
    flag("no-progress", "no progress bar", either="bar"),
    module="mapanything.tools.check_opv2v",
)
TREE = tool(
    "tree",
    "Shows the data tree in short: scenarios, vehicles, frames and how many of them are complete.",
    *DATA,
    folder("depth-root", "count the depth maps in this folder too", otherwise=f"{DEPTH} without --root, if there"),
)
MAKE_DEPTH = tool(
    "make-depth",
    "Makes depth maps of what each camera sees from LiDAR clouds.",
    *DATA,
    folder("depth-root", "folder to write the depth maps to", otherwise=str(DEPTH)),
    JOBS,
    Option("format", "float32 metres, 16 bit at 1/256 m a step, or both", "npy", choices=("npy", "png", "both")),
    Option("visibility", "leave out what the camera can't see; off: every return", "on", choices=("on", "off")),
    flag("fuse", "also what this vehicle's sweep and another's agree on: 2 to 4 times the labels"),
    PATTERN,
    OVERWRITE,
)
MAKE_SAMPLE = tool(
    "make-sample",
    "Writes a synthetic OPV2V data set: several vehicles, images, depth, clouds, YAML.",
    folder("output", "folder for opv2v_images and opv2v_depth; new, empty or an earlier sample", required=True),
    flag("overwrite", "replace an earlier sample; foreign files stay"),
    Option("seed", "another number, another town; same options, same bytes", 0, type=int),
    Option("splits", "splits to write, with commas", "train,validate,test"),
    Option("scenarios", "scenarios per split; one number, or one for each with commas", "2", metavar="N[,N...]"),
    Option("agents", "vehicles with sensors per scenario, 2 to 7", 3, type=int),
    Option("frames", "timestamps per scenario, 0.1 s apart", 4, type=int),
    Option("image-size", "WIDTHxHEIGHT, always 100 degrees wide", "800x600", metavar="WxH"),
    Option("lidar-channels", "lines of a LiDAR sweep", 32, type=int),
    Option("lidar-points", "rays of a LiDAR sweep, of which about 4 in 5 return", 50_000, type=int),
    flag("no-depth", "leave out the depth maps"),
    flag("tests-only", "mark the roots so that no training run accepts them"),
    JOBS,
)
