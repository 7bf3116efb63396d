"""Pictures of OPV2V frames as PNG files; no display is needed.

    python -m mapanything.tools.viz pose     a timestamp from above and in 3D: clouds, boxes, cameras of all agents
    python -m mapanything.tools.viz frame    LiDAR points and boxes over the four images of one agent

What is not named (split, scenario, agent, frame) is the first there is.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mapanything.errors import InputError, run_command
from mapanything.geometry.rigid import invert
from mapanything.opv2v.files import write_atomic
from mapanything.opv2v.layout import YAML, AgentFolder, Selection, agent_order, list_folders, scan, scan_agent
from mapanything.opv2v.png import read_image
from mapanything.tools.options import IMAGES
from mapanything.visualization import overlay, plots, render
from mapanything.visualization.scenes import CAMERA_NAMES, AgentFrame, build_scene, read_timestamp, vehicle_boxes

MIN_RANGE = 60.0  # metres
UNSEEN_COLOR = (255, 140, 230)  # boxes of vehicles that only other agents saw
CELL_WIDTH = 800  # pixels that an image of the sheet has at least


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return args.run(args)


def pose(args: argparse.Namespace) -> int:
    agents = find_agents(args)
    for agent in agents:
        if not agent.has_cloud:
            print(f"note: no {agent.paths.pcd}; {agent.key.agent} is drawn without its cloud", file=sys.stderr)
    max_range = args.max_range or default_range(agents)
    scene = build_scene(agents, max_range=max_range, camera_length=args.camera_size)
    image = view = None
    if not args.no_3d:
        width, height = plots.view_size(len(agents))
        view = render.chase_view(
            width, height, background=plots.BACKGROUND, point_size=args.point_size, line_width=1.6, supersample=2
        )
        image = render.render(scene, view)
    return _save(args, agents[0], "pose", plots.pose_sheet(scene, max_range, image, view, args.point_size))


def frame(args: argparse.Namespace) -> int:
    agents = find_agents(args)
    agent = agents[0]
    points = agent.lidar_points()
    boxes = vehicle_boxes(agents)
    boxes = boxes.select(np.array([label != agent.key.agent for label in boxes.labels], dtype=bool))
    own = {str(vehicle.id) for vehicle in agent.frame.vehicles}
    known = own | {agent.key.agent for agent in agents}  # agents keep their colour
    unseen = np.array([label not in known for label in boxes.labels], dtype=bool)
    boxes.colors[unseen] = UNSEEN_COLOR
    if len(agent.frame.cameras) < len(CAMERA_NAMES):
        raise InputError(f"{agent.paths.yaml}: has {len(agent.frame.cameras)} cameras of {len(CAMERA_NAMES)}")
    missing = [path for k in range(len(CAMERA_NAMES)) if not (path := agent.paths.image(k)).exists()]
    if missing:
        also = f" and {len(missing) - 1} more of this frame" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}: image is missing{also}; restore it or choose another frame")
    images = []
    for camera in agent.frame.cameras:
        image = read_image(agent.paths.image(camera.index))
        if not images:
            height, width = (size * max(1, math.ceil(CELL_WIDTH / image.shape[1])) for size in image.shape[:2])
        image, intrinsics = overlay.enlarge(image, camera.cv_intrinsics, width, height)
        image = overlay.draw_points(image, points, camera.camera_from_lidar, intrinsics, size=args.point_size)
        images.append(overlay.draw_boxes(image, boxes, camera.camera_from_lidar, intrinsics))
    key = agent.key
    note = f"boxes: {len(own)} vehicles that {key.agent}'s LiDAR hit"
    if len(agents) > 1:
        note += f";  pink: {unseen.sum()} more that only the others ({', '.join(a.key.agent for a in agents[1:])}) hit"
    sheet = plots.image_sheet(
        images,
        [f"camera{k}: {name}" for k, name in enumerate(CAMERA_NAMES)],
        f"{key.split} / {key.scenario} / agent {key.agent} / frame {key.frame}",
        note,
    )
    return _save(args, agent, "frame", sheet)


def find_agents(args: argparse.Namespace) -> tuple[AgentFrame, ...]:
    """The chosen timestamp's agents, the main one first: what is not named is the first there is.

    Raises:
        InputError: says which of split, scenario, agent or frame is not there.
    """
    selection = Selection(
        splits=(args.split,) if args.split else (),
        scenarios=(args.scenario,) if args.scenario else (),
        agents=(args.agent,) if args.agent else (),
        frames=(args.frame,) if args.frame else (),
    )
    for main in scan(args.root, selection):
        chosen = [name for name, has in main.frames.items() if has & YAML]
        if chosen:
            break
    else:
        raise InputError(f"{args.root}: no frame with a YAML file; `invoke tree` lists what is there")
    folders = [main] if args.single else _siblings(args.root, main)
    return read_timestamp(folders, main.agent, chosen[0])


def _siblings(root: Path, main: AgentFolder) -> list[AgentFolder]:
    names = sorted(list_folders(root / main.split / main.scenario), key=agent_order)
    return [scan_agent(root, main.split, main.scenario, name) for name in names]


def default_range(agents: Sequence[AgentFrame]) -> float:
    """Metres: far enough that every agent is in the picture."""
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    offsets = [(lidar_from_world @ agent.frame.world_from_lidar)[[0, 2], 3] for agent in agents]
    return max(MIN_RANGE, float(np.abs(offsets).max()) + 15.0)


def _save(args: argparse.Namespace, agent: AgentFrame, kind: str, data: bytes) -> int:
    key = agent.key
    path = args.output
    if path is None:
        name = f"{kind}_{key.split}_{key.scenario}_{key.agent}_{key.frame}.png"
        path = Path("visualization_outputs") / datetime.date.today().isoformat() / name
    write_atomic(path, data)
    print(path)
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise ValueError
    return value


_positive.__name__ = "positive number"  # argparse's message names it


def _odd(text: str) -> int:
    value = int(text)
    if not (0 < value < 100 and value % 2):
        raise ValueError
    return value


_odd.__name__ = "odd number of pixels"


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise ValueError
    return Path(text)


_png.__name__ = "name that ends in .png"


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    where = common.add_argument_group("which frame (what is not given is the first there is)")
    where.add_argument("--root", "--dataset_root", type=Path, default=IMAGES, help="images, YAML, clouds [%(default)s]")
    where.add_argument("--split", help="train, validate, test, ...")
    where.add_argument("--scenario", "--sequence", help="such as 2021_08_16_22_26_54")
    where.add_argument("--agent", help="the main agent, such as 641")
    where.add_argument("--frame", help="timestamp, such as 000069")
    where.add_argument("--single", action="store_true", help="only the main agent, not the others of the timestamp")
    common.add_argument("--output", type=_png, metavar="FILE.png", help="[visualization_outputs/DATE/...]")

    parser = argparse.ArgumentParser(prog="python -m mapanything.tools.viz", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="pose|frame")
    command = commands.add_parser(
        "pose", parents=[common], help="clouds, boxes and cameras of a timestamp, from above and in 3D"
    )
    command.add_argument(
        "--max_range", type=_positive, metavar="M", help=f"metres shown to each side [{MIN_RANGE:g}, or all agents]"
    )
    command.add_argument("--camera_size", type=_positive, default=2.0, metavar="M", help="of the frusta [%(default)s]")
    command.add_argument("--point_size", "--point-size", type=_positive, default=1.5, metavar="PX", help="[%(default)s]")
    command.add_argument("--no_3d", "--no-3d", action="store_true", help="only the view from above, without Open3D")
    command.set_defaults(run=pose)
    command = commands.add_parser("frame", parents=[common], help="LiDAR and boxes over the four images of an agent")
    command.add_argument("--point_size", "--point-size", type=_odd, default=3, metavar="PX", help="[%(default)s], odd")
    command.set_defaults(run=frame)
    return parser


if __name__ == "__main__":
    run_command(main)
