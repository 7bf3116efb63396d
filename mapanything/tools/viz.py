"""Pictures as PNG files, GIFs and MP4s; no display is needed.

    python -m mapanything.tools.viz             the newest run or prediction, else the first frame of the mounted data
    python -m mapanything.tools.viz pose        a timestamp from above and in 3D: clouds, boxes, cameras, paths of all agents
    python -m mapanything.tools.viz cloud       LiDAR, a prediction or any .pcd/.ply: from above, behind, through each camera
    python -m mapanything.tools.viz boxes       the same with the vehicles' boxes
    python -m mapanything.tools.viz compare     a prediction beside, over and against the LiDAR, or two cloud files
    python -m mapanything.tools.viz depth       depth maps below their images; predicted ones below those
    python -m mapanything.tools.viz frame       LiDAR points and boxes over the four images of one agent
    python -m mapanything.tools.viz sequence    pose, cloud or boxes over many frames

What is not named (split, scenario, agent, frame) is the first there is. docs/pictures.md shows all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mapanything.errors import run_command
from mapanything.pictures.viewpoints import VIEWS
from mapanything.tools import viz_options as options
from mapanything.tools import viz_predictions as predictions
from mapanything.tools import viz_scenes as scenes
from mapanything.tools import viz_sequence as sequences
from mapanything.tools.options import add_jobs, add_option, length, odd, positive
from mapanything.tools.viz_newest import draw_newest


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    return args.run(args) if hasattr(args, "run") else draw_newest(args, parser)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mapanything.tools.viz",
        description=(__doc__ or "").splitlines()[0],
        epilog="Without a command: the newest run or prediction, else the data's first frame.",
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    _pose(commands.add_parser("pose", help="clouds, boxes and cameras of a timestamp, from above and in 3D"))
    _cloud(commands.add_parser("cloud", help="clouds from above, from behind and through each camera"))
    _boxes(commands.add_parser("boxes", help="the same with the vehicles' boxes"))
    _compare(commands.add_parser("compare", help="a prediction beside, over and against the truth"))
    _depth(commands.add_parser("depth", help="depth maps below their images, predicted ones below those"))
    _frame(commands.add_parser("frame", help="LiDAR and boxes over the four images of an agent"))
    _sequence(commands.add_parser("sequence", help="pose, cloud or boxes over many frames: GIF, MP4 or a folder of PNGs"))
    return parser


def _pose(command: argparse.ArgumentParser) -> None:
    options.frame_options(command)
    options.output_option(command)
    options.scene_options(command)
    _no_3d(command)
    command.set_defaults(run=scenes.pose)


def _no_3d(command: argparse.ArgumentParser) -> None:
    add_option(command, "--no_3d", action="store_true", help="only the view from above, without Open3D")


def _cloud(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help=".pcd, .ply or .glb files instead of a frame")
    _boxes(command)
    _axes(command)
    command.set_defaults(run=scenes.cloud)


def _boxes(command: argparse.ArgumentParser) -> None:
    options.frame_options(command)
    options.prediction_option(command)
    options.output_option(command)
    options.scene_options(command)
    options.view_option(command)
    _color(command)
    command.set_defaults(run=scenes.boxes)


def _color(command: argparse.ArgumentParser) -> None:
    add_option(command, "--color", choices=("height", "agent"), default="height", help="of LiDAR points [%(default)s]")


def _axes(command: argparse.ArgumentParser) -> None:
    add_option(command, "--axes", choices=("opv2v", "opencv"), default="opv2v",
                help="of cloud files: x forward, y right, z up, or x right, y down, z forward [%(default)s]")  # fmt: skip


def _compare(command: argparse.ArgumentParser) -> None:
    options.frame_options(command)
    options.prediction_option(command)
    add_option(command, "--pred_pcd", type=Path, metavar="FILE", help="a predicted cloud ...")
    add_option(command, "--gt_pcd", type=Path, metavar="FILE", help="... and the true one, in the same frame")
    _axes(command)
    options.output_option(command)
    options.scene_options(command)
    add_option(command, "--view", choices=VIEWS, default="chase", help="of all four panels [%(default)s]")
    command.set_defaults(run=predictions.compare)


def _depth(command: argparse.ArgumentParser) -> None:
    options.frame_options(command)
    options.prediction_option(command)
    options.depth_option(command)
    options.output_option(command)
    command.set_defaults(run=predictions.depth)


def _frame(command: argparse.ArgumentParser) -> None:
    options.frame_options(command)
    options.output_option(command)
    add_option(command, "--point_size", type=odd, default=3, metavar="PX", help="[%(default)s], odd")
    command.set_defaults(run=scenes.frame)


def _sequence(command: argparse.ArgumentParser) -> None:
    command.add_argument("kind", nargs="?", choices=sequences.KINDS, default="boxes", help="of picture [%(default)s]")
    options.frame_options(command, "timestamps, such as 000069-000169 or 000069,000071 [all; of --prediction, those it has]")
    options.prediction_option(command)
    add_option(command, "--output", type=sequences.sequence_path, metavar="PATH",
                help=f".mp4, .gif, or a folder for PNGs [{options.OUTPUTS}/DATE/....mp4]")  # fmt: skip
    add_option(command, "--every", type=positive, default=1, metavar="N", help="only every N-th frame")
    add_option(command, "--fps", type=length, default=5.0, metavar="N", help="frames per second [%(default)g]")
    add_option(command, "--width", type=positive, metavar="PX", help="make the pictures that narrow")
    add_jobs(command)
    options.scene_options(command, window=False)
    add_option(command, "--view", choices=("sheet", *VIEWS), default="chase", help="of cloud and boxes [%(default)s]")
    _color(command)
    _no_3d(command)
    command.set_defaults(run=sequences.sequence)


if __name__ == "__main__":
    run_command(main)
