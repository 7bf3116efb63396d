"""The tables of the commands that show: pictures, the viewer, the demo."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

from mapanything.cli.data import DEPTH, JOBS, one_frame
from mapanything.cli.options import Command, Option, file, flag, folder, from_caller, group, options, several, tool, word
from mapanything.cli.types import file_name, length, names_of, odd, port, positive

OUTPUTS = Path("visualization_outputs")
VIEWS = ("chase", "top", "camera0", "camera1", "camera2", "camera3", "fit")
LAYERS = ("cloud", "ground_truth", "boxes", "cameras", "axes", "paths", "rings", "names")
MOVING = (".gif", ".mp4")


def sequence_path(text: str) -> Path:
    """A moving picture's file, or a folder."""
    if Path(text).suffix.lower() in ("", *MOVING):
        return Path(text)
    raise ArgumentTypeError(f"'{text}' ends in neither .gif nor .mp4; without an ending it is a folder of PNGs")


def locate_file(text: str) -> str:
    """Locates a file's name as `from_caller` does; another word stays as it is."""
    return from_caller(text) if Path(text).suffix else text


def kind(name: str, help: str, *declared: Option) -> Command:
    """One kind of picture."""
    return Command(name, "", help, options(*declared))


HIDDEN = flag("hidden-returns", "mark LiDAR returns that the camera cannot see, in magenta")
FRAME = (*one_frame("which frame"), flag("single", "only this vehicle, not the others of the timestamp"))
OUTPUT = file("output", "the picture", otherwise=f"{OUTPUTS}/<date>/....png", type=file_name(".png"), metavar="FILE.png")
PREDICTION = folder("prediction", "what `./invoke infer` wrote, or one scene's folder in it")
AXES = Option(
    "axes", "of cloud files: x forward, y right, z up, or x right, y down, z forward", "opv2v", choices=("opv2v", "opencv")
)
COLOR = Option("color", "of LiDAR points", "height", choices=("height", "agent"))
NO_3D = flag("no-3d", "only the view from above, without Open3D")
VIEW = Option("view", "one view only, or a sheet of them", "sheet", choices=("sheet", *VIEWS))
# What the group's scripts call it; pictures never need a window.
NO_WINDOW = flag("no-gui", "no window; so it is anyway", also=("offscreen",), either="window")
LOOKS = (
    Option("max-range", "metres shown to each side", otherwise="60, or all agents", type=length),
    Option("camera-size", "of the cameras' frusta, metres", 2.0, type=length),
    Option("point-size", "of points, pixels", 1.5, type=length),
    Option("hide", f"of {', '.join(LAYERS)}", (), "none", type=names_of("layer", LAYERS), metavar="A,B"),
)
MOVING_LOOKS = group("how", *LOOKS, NO_WINDOW)
HOW = group("how", *LOOKS, flag("window", "Open3D's window instead of a file; needs a display", either="window"), NO_WINDOW)
PREDICTED = (*FRAME, PREDICTION, OUTPUT)
CLOUDS = (*PREDICTED, *HOW, VIEW, COLOR)

VIZ = Command(
    "viz",
    "mapanything.tools.viz",
    "Draws pictures as PNG, GIF or MP4, without a display: `./invoke viz boxes --max-range 60`.",
    kinds=(
        kind(
            "pose",
            "a timestamp from above and in 3D: clouds, boxes, cameras, paths of all agents",
            *FRAME,
            OUTPUT,
            *HOW,
            NO_3D,
        ),
        kind(
            "cloud",
            "LiDAR, a prediction or any cloud files from above, from behind and through each camera",
            word(
                "files",
                "clouds instead of a frame: .pcd, .ply, .glb",
                type=Path,
                nargs="*",
                metavar="FILE",
                locate=locate_file,
            ),
            *CLOUDS,
            AXES,
        ),
        kind("boxes", "the same with the vehicles' boxes", *CLOUDS),
        kind(
            "compare",
            "a prediction beside, over and against the LiDAR, or two cloud files",
            *PREDICTED,
            *HOW,
            AXES,
            file("pred-pcd", "a predicted cloud ..."),
            file("gt-pcd", "... and the true one, in the same frame"),
            Option("view", "of all four panels", "chase", choices=VIEWS, metavar="VIEW"),
        ),
        kind(
            "depth",
            "depth maps below their images, predicted ones below those",
            *PREDICTED,
            folder("depth-root", "depth maps", otherwise=f"{DEPTH} where there is one, else the LiDAR"),
            HIDDEN,
        ),
        kind(
            "frame",
            "LiDAR points and boxes over the four images of one agent",
            *FRAME,
            OUTPUT,
            Option("point-size", "of points, an odd number of pixels", 3, type=odd),
            HIDDEN,
        ),
        kind(
            "sequence",
            "pose, cloud or boxes over many frames: GIF, MP4 or a folder of PNGs",
            word("picture", "of each frame", "boxes", choices=("pose", "cloud", "boxes"), nargs="?"),
            *PREDICTED,
            *MOVING_LOOKS,
            COLOR,
            NO_3D,
            JOBS,
            *group(FRAME[0].group, Option("frame", "such as 000069-000169 or 000069,000071", otherwise="all there are")),
            file("output", ".mp4, .gif, or a folder for PNGs", otherwise=f"{OUTPUTS}/<date>/....mp4", type=sequence_path),
            Option("every", "only every N-th frame", 1, type=positive),
            Option("fps", "frames per second", 5.0, type=length),
            Option("width", "make the pictures that narrow, pixels", type=positive),
            Option("view", "of cloud and boxes", "chase", choices=("sheet", *VIEWS), metavar="VIEW"),
        ),
    ),
    without="a sheet of the newest run or prediction there is, else the data's first frame",
)
VIEWER = tool(
    "viewer",
    "Shows frames in the browser: points, boxes, cameras; says how to reach it from another machine.",
    folder("predictions", "what `./invoke infer` wrote, as another layer"),
    Option("host", "address to listen on; 0.0.0.0: all of this machine's", "127.0.0.1", metavar="ADDRESS"),
    Option("port", "0: any free one", 8080, type=port),
    several("name", "a name, besides this machine's own, that browsers may ask under; may be repeated"),
    file("rrd", "write a Rerun recording of the agent's frames, or of --frame, and end", type=file_name(".rrd")),
    *one_frame("what to show first"),
)
DEMO = tool(
    "demo",
    "Runs the whole flow on a generated data set, three stages of training included, on the CPU, in minutes.",
    folder("root", "use this data set; trained, and measured, is its first complete timestamp"),
    folder("output", "work folder of the demo", Path("experiments/demo")),
    flag("short", "hardly any training: shows that everything runs"),
    JOBS,
)
