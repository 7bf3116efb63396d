"""The tables of the commands that train, apply and measure the network."""

from __future__ import annotations

import re
from pathlib import Path

from mapanything.cli.data import DATA, DEPTH, FRAMES, JOBS, JSON, OVERWRITE, SEVERAL, SPLITS
from mapanything.cli.options import Command, Option, file, flag, folder, from_caller, group, several, tool
from mapanything.cli.types import length, positive, whole

STAGES = ("1", "2", "3")
INPUTS = Option("inputs", "what the network sees: images, and of intrinsics,poses,depth what is named", "images")
AMP = Option(
    "amp",
    "precision of encoder and transformer",
    "auto",
    "bf16 on a GPU, fp32 on a CPU",
    choices=("auto", "bf16", "fp16", "fp32"),
)


def override(help: str) -> Option:
    return several("o", help, metavar="KEY=VALUE")


def resolution(otherwise: str) -> Option:
    return Option("resolution", "WIDTHxHEIGHT, multiples of 14", otherwise=otherwise, nargs="+", metavar="WxH")


def split_models(text: str) -> list[str]:
    """NAME=PATH words of one text, with spaces or commas between them."""
    return re.split(r"[,\s]\s*(?=[\w.+-]+=)", text.strip())


def locate_unless_none(text: str) -> str:
    return text if text == "none" else from_caller(text)


def locate_models(text: str) -> str:
    """NAME=PATH words whose paths hold wherever they are read."""
    pairs = (entry.partition("=") for entry in split_models(text))
    return ",".join(f"{name}={from_caller(path)}" if path else name + equals for name, equals, path in pairs)


TRAIN = Command(
    "train",
    "mapanything.train.training",
    "Trains one stage, or all three in a chain; interrupted, the same command goes on where it was.",
    (
        Option("stage", "1 (one vehicle), 2 (several, eight views) or 3 (several, four to ten views)"),
        flag("all", "stage 1, then 2, then 3; those that are done are skipped"),
        Option("machine", "a file of configs/machine", "default"),
        flag("resume", "there has to be something to resume"),
        flag("fresh", "start over; what the run's folder holds is put aside in it"),
        Option("nodes", "hosts that take part; run the same command on each"),
        Option("node-rank", "this host's number, from 0"),
        Option("rendezvous", "HOST:PORT of host 0"),
        flag("keep-global-batch", "with fewer GPUs than the stage has, accumulate gradients"),
        override("KEY=VALUE, any entry of the configuration; 2,3:KEY=VALUE for these stages; may be repeated"),
        flag("dry-run", "print the command only"),
    ),
)
RUNS = tool(
    "runs",
    "Lists training runs: stage, epoch, best validation loss, state.",
    folder("root", "folder of the runs", Path("experiments")),
    JSON,
)
PLAN_MEMORY = tool(
    "plan-memory",
    "Says what fits on a card before it is tried: batches × ways to save memory, traced without a GPU.",
    Option("stage", "of training", "3", choices=STAGES),
    Option("gpu-gb", "memory that the card is sold with", "24", metavar="GB"),
    Option("model", "a file of configs/model", otherwise="mapanything, which is v1.1", metavar="NAME"),
    Option("views", "views of a scene; several with commas", otherwise="the stage's", metavar="N[,N]"),
    Option("batch", "scenes at a time; several with commas", otherwise="the stage's images / its views", metavar="N[,N]"),
    Option("resolution", "of images; several with commas", otherwise="the stage's and the other in use", metavar="WxH[,WxH]"),
    Option("world-size", "GPUs", otherwise="the stage's", metavar="N"),
    override("KEY=VALUE, any entry of the configuration; may be repeated"),
    flag("measure", "run the step on this machine's GPU and compare it with its plan: as configured, no table"),
    JSON,
    JOBS,
)
INFER = tool(
    "infer",
    "Predicts depth, masks, point clouds and poses of any frames; goes on where a stopped run ended.",
    file("checkpoint", "the network: .pth, .safetensors or a folder with config.json", metavar="PATH"),
    *DATA,
    folder("depth-root", "depth maps, read only where depth is an input", otherwise=str(DEPTH)),
    several("agent", f"only this vehicle; with --coop the vehicles that take part; {SEVERAL}", also=("agents",)),
    FRAMES,
    Option("limit", "only the first so many scenes of the selection", type=positive),
    flag("coop", "all (chosen) vehicles of a timestamp as one scene"),
    Option("main-agent", "with --coop, the vehicle whose LiDAR frame it is", otherwise="641, else the first", metavar="NAME"),
    Option("num-views", "most views of a scene, whole vehicles first", otherwise="all cameras", type=positive),
    INPUTS,
    resolution("518x392; with --coop 448x252"),
    folder("save-pred-dir", "where the results go", otherwise="visualization_outputs/<date>/predictions", also=("out",)),
    Option("cloud", "kinds of point cloud, of pcd, ply, glb with commas, or none", "pcd", metavar="LIST"),
    Option(
        "frame-of",
        "axes of the clouds: x forward, y right, z up, as the LiDAR's are stored, or x right, y down, z forward",
        "opv2v",
        choices=("opv2v", "opencv"),
    ),
    Option("device", "cpu, cuda (all GPUs), cuda:1 or several with commas", "auto", "the GPUs, else cpu", metavar="LIST"),
    AMP,
    OVERWRITE,
    epilog="What exists already is skipped.",
)
EVALUATE = tool(
    "evaluate",
    "Measures checkpoints side by side: pose, depth, scale, Chamfer, BEV; the network sees images only.",
    several(
        "models",
        f"NAME=PATH of a checkpoint (.pth, .safetensors or a folder); {SEVERAL}",
        metavar="NAME=PATH",
        nargs="+",
        required=True,
        locate=locate_models,
    ),
    Option("mode", "one vehicle a scene, all of a timestamp, or both in turn", "both", choices=("single", "coop", "both")),
    *DATA,
    folder("depth-root", "depth maps to measure with; none: there are none", otherwise=str(DEPTH), locate=locate_unless_none),
    folder("truth-root", "rendered maps of the same frames: says what a perfect map would score", otherwise="none"),
    several("split", f"{SPLITS}; {SEVERAL}", otherwise="test, else validate"),
    FRAMES,
    *group(
        "which timestamps",
        file("frames", "file that lists split/scenario/frame or split/scenario/agent/frame lines"),
        Option("sample", "draw so many timestamps", otherwise="all of the selection", type=positive),
        Option("seed", "of every random choice", 0, type=whole),
        Option("main-agent", "where it is there, else the first vehicle", otherwise="641", metavar="NAME"),
        Option("min-agents", "leave out timestamps with fewer vehicles", otherwise="2; with --mode single 1", type=positive),
        flag("every-agent", "single: every vehicle of a timestamp, not the main agent alone"),
    ),
    *group(
        "what the network sees",
        INPUTS,
        Option("num-views", "most views of a scene, whole vehicles first", 8, type=positive),
        resolution("single 518x392, coop 448x252"),
        Option("device", "cpu, cuda or cuda:1", "auto", "a GPU where there is one"),
        AMP,
    ),
    *group(
        "what is measured",
        Option("reference", "true cloud: of the views' known depths or the LiDAR", "depth", choices=("depth", "lidar")),
        Option(
            "z-range", "LOW,HIGH of the filtered figures, metres above the LiDAR", ("-3", "1"), "-3,1", nargs="+", metavar="M"
        ),
        Option("radius", "of the filtered figures, metres from the main agent", 50.0, type=length),
        Option("bev-cell", "cell of the view from above, metres", 0.5, type=length),
        Option("bev-extent", "of the view from above, metres to each side", 50.0, type=length),
        Option("chamfer-points", "points of each cloud that look for their neighbour", 200_000, type=positive),
    ),
    *group(
        "results",
        folder("out", "where the results go", otherwise="visualization_outputs/<date>/evaluation"),
        flag("overwrite", "replace the evaluation that lies there"),
        Option("worst", "pictures of so many worst scenes per model and mode, 0: none", 3, type=whole),
        Option("rank-by", "the metric that says which are the worst", "pose_translation_m", metavar="COLUMN"),
        flag("save-representative", "export the best, middle and worst scene per model and mode, as infer does"),
    ),
    epilog="Both modes see the same timestamps, so that they can be compared.",
)
