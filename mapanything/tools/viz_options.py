"""Finds the frame that a command of `viz` means, and puts its picture where it belongs."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mapanything.cli.pictures import OUTPUTS
from mapanything.errors import InputError
from mapanything.files import write_atomic
from mapanything.geometry.rigid import invert
from mapanything.opv2v.layout import YAML, AgentFolder, FrameKey, agent_order, list_folders, scan, scan_agent
from mapanything.pictures.picture import Picture
from mapanything.pictures.render import View, chase_view
from mapanything.pictures.scenes import AgentFrame, read_timestamp
from mapanything.pictures.viewpoints import STYLE
from mapanything.tools.options import selection

MIN_RANGE = 60.0  # metres


@dataclass(frozen=True, slots=True, eq=False)
class Timestamp:
    """A frame of a scenario. The main agent's folder is the first; those of --single have no other."""

    root: Path
    folders: tuple[AgentFolder, ...]
    frame: str

    @property
    def key(self) -> FrameKey:
        return self.folders[0].key(self.frame)

    @property
    def main(self) -> str:
        return self.folders[0].agent

    def frames(self) -> list[str]:
        """The main agent's frames, in order of time."""
        return [name for name, has in self.folders[0].frames.items() if has & YAML]

    def agents(self) -> tuple[AgentFrame, ...]:
        """Reads those who are there, the main agent first. Raises InputError."""
        return read_timestamp(self.folders, self.main, self.frame)


def find_timestamp(args: argparse.Namespace) -> Timestamp:
    """The chosen timestamp: what is not named is the first there is.

    Raises:
        InputError: says which of split, scenario, agent or frame is not there.
    """
    for main in scan(args.root, selection(args)):
        chosen = [name for name, has in main.frames.items() if has & YAML]
        if chosen:
            break
    else:
        given = {"split": args.split, "scenario": args.scenario, "agent": args.agent, "frame": args.frame}
        named = ", ".join(f"{kind} {name}" for kind, name in given.items() if name)
        of = f" of {named}" if named else ""
        raise InputError(f"{args.root}: no frame{of} with a YAML file; `./invoke tree` lists what is there")
    names = [main.agent]
    if not args.single:
        others = sorted(list_folders(args.root / main.split / main.scenario), key=agent_order)
        names += [name for name in others if name != main.agent]
    folders = tuple(scan_agent(args.root, main.split, main.scenario, name) for name in names)
    return Timestamp(args.root, folders, chosen[0])


def default_range(agents: Sequence[AgentFrame]) -> float:
    """Metres: far enough that every agent is in the picture."""
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    offsets = [(lidar_from_world @ agent.frame.world_from_lidar)[[0, 2], 3] for agent in agents]
    return max(MIN_RANGE, float(np.abs(offsets).max()) + 15.0)


def note_missing_clouds(agents: Sequence[AgentFrame]) -> None:
    for agent in agents:
        if not agent.has_cloud:
            print(f"note: no {agent.paths.pcd}; {agent.key.agent} is drawn without its cloud", file=sys.stderr)


def output_path(args: argparse.Namespace, name: str, suffix: str = ".png") -> Path:
    """--output, or a dated place."""
    return args.output or OUTPUTS / datetime.date.today().isoformat() / f"{name}{suffix}"


def key_name(kind: str, key: FrameKey) -> str:
    return f"{kind}_{key.split}_{key.scenario}_{key.agent}_{key.frame}"


def save(args: argparse.Namespace, name: str, data: bytes) -> int:
    path = output_path(args, name)
    write_atomic(path, data)
    print(path)
    return 0


def show_window(args: argparse.Namespace, picture: Picture, name: str, view: View | None = None) -> int:
    """Open3D's window with the picture's layers; its S key writes where the picture would have gone."""
    from mapanything.pictures.window import show

    shown = {layer: list(picture.layers[layer]) for layer in ("cloud", "ground_truth", "boxes") if layer in picture.layers}
    shown["cameras"] = [*picture.layers.get("cameras", ()), *picture.layers.get("axes", ())]
    show(shown, title=picture.title, snapshot=output_path(args, name), view=view or chase_view(**STYLE))
    return 0
