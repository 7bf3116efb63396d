"""Shows an OPV2V data tree in short: scenarios, vehicles, first to last frame, and what is there of each kind of file.

Only folders are read, no file is opened: seconds on the full data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from mapanything.cli.data import DEPTH, IMAGES, TREE
from mapanything.errors import InputError, printable, run_command
from mapanything.opv2v.layout import CAMERA, COMPLETE, LEADS_NOWHERE, PCD, YAML, AgentFolder, Selection, find_splits, scan
from mapanything.tools.options import selection

KINDS = {"yaml": YAML, "pcd": PCD} | {f"camera{k}": bit for k, bit in enumerate(CAMERA)}


@dataclass(slots=True)
class Total:
    """The counts so far, of a scenario or a split."""

    scenarios: set[str] = field(default_factory=set)
    agents: int = 0
    frames: int = 0
    complete: int = 0
    depth_maps: int = 0

    def add(self, folder: AgentFolder, depth_maps: int) -> None:
        self.scenarios.add(folder.scenario)
        self.agents += 1
        self.frames += len(folder.frames)
        self.complete += sum(bits == COMPLETE for bits in folder.frames.values())
        self.depth_maps += depth_maps


def lines(root: Path, depth_root: Path | None, selection: Selection) -> Iterator[str]:
    """The tree, line by line, as the folders are read."""
    yield f"images {located(root)}"
    if depth_root is not None:
        yield f"depth  {located(depth_root)}"
    split = scenario = ""
    total = Total()
    broken: list[str] = []
    for folder in scan(root, selection, broken):
        if folder.split != split:
            if split:
                yield total_line(split, total)
            split, scenario, total = folder.split, "", Total()
            yield split
        if folder.scenario != scenario:
            scenario = folder.scenario
            yield f"  {scenario}"
        depth_maps = count_depth(depth_root, folder) if depth_root is not None else 0
        total.add(folder, depth_maps)
        yield f"    {agent_line(folder, depth_maps if depth_root is not None else None)}"
    if split:
        yield total_line(split, total)
    for name in broken:
        yield f"{name}: {LEADS_NOWHERE}; is its disk mounted?"


def located(root: Path) -> str:
    """A root with where its link leads."""
    return f"{root} -> {root.resolve()}" if root.is_symlink() else str(root)


def agent_line(folder: AgentFolder, depth_maps: int | None) -> str:
    frames = list(folder.frames)
    if not frames:
        return f"{folder.agent:>6}  no frames"
    text = f"{folder.agent:>6}  {counted(len(frames), 'frame')} {frames[0]}..{frames[-1]}{steps(frames)}"
    text += missing_kinds(folder.frames.values())
    if depth_maps is not None:
        text += f", {counted(depth_maps, 'depth map')}"
    return text


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def steps(frames: list[str]) -> str:
    """Names the step between frames where it is not OPV2V's own, every second number."""
    found = Counter(int(b) - int(a) for a, b in pairwise(frames))
    usual = found.most_common(1)[0][0] if found else 2
    text = "" if usual == 2 else f" step {usual}"
    gaps = sum(count for step, count in found.items() if step != usual)
    return text + (f", {counted(gaps, 'gap')}" if gaps else "")


def missing_kinds(frames: Iterable[int]) -> str:
    """`, complete`, or how many of each kind of file are not there."""
    counts = Counter(name for bits in frames for name, bit in KINDS.items() if not bits & bit)
    if not counts:
        return ", complete"
    return ", missing " + ", ".join(f"{counts[name]} {name}" for name in KINDS if counts[name])


def count_depth(depth_root: Path, folder: AgentFolder) -> int:
    """Depth maps of this vehicle, whatever their naming; a map there as .npy and .png counts once."""
    path = depth_root / folder.split / folder.scenario / folder.agent
    try:
        names = {entry.stem for entry in path.iterdir() if entry.suffix in (".npy", ".png") and "depth" in entry.stem}
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path and its permissions") from error
    return sum(name.split("_")[0] in folder.frames for name in names)


def total_line(split: str, total: Total) -> str:
    parts = [(len(total.scenarios), "scenario"), (total.agents, "vehicle"), (total.frames, "agent-frame")]
    text = ", ".join(counted(*part) for part in parts) + f", {total.complete} complete"
    return f"  {split}: {text}" + (f", {counted(total.depth_maps, 'depth map')}" if total.depth_maps else "")


def main() -> int:
    arguments = TREE.parse()
    wanted = selection(arguments)
    depth_root = arguments.depth_root
    if depth_root is None and arguments.root == IMAGES and DEPTH.is_dir():
        depth_root = DEPTH
    # Both roots are looked at before the first line is printed.
    find_splits(arguments.root, wanted.splits)
    if arguments.depth_root is not None:
        find_splits(arguments.depth_root)
    for line in lines(arguments.root, depth_root, wanted):
        print(printable(line))
    return 0


if __name__ == "__main__":
    run_command(main)
