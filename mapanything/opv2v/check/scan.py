"""Names and sizes: what a data set lacks, without opening a file. One `os.scandir` and one `stat` a file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mapanything.errors import InputError
from mapanything.opv2v.check.report import Problem
from mapanything.opv2v.layout import (
    CAMERA,
    COMPLETE,
    FRAME_BITS,
    FRAME_FILE,
    LEADS_NOWHERE,
    SPLITS,
    DepthLayout,
    FrameKey,
    Selection,
    agent_order,
    broken_links,
    find_splits,
    list_folders,
)

DANGLING, NOT_A_FILE, UNREADABLE = -1, -2, -3  # in place of a size
_STATES = {
    0: ("empty-{what}", "is empty"),
    DANGLING: ("dangling-link", LEADS_NOWHERE),
    NOT_A_FILE: ("not-a-file", "is no regular file"),
    UNREADABLE: ("unreadable", "can't be read"),
}
_SUFFIXES = {bit: (suffix, suffix[-4:].strip(".")) for suffix, bit in FRAME_BITS.items()}
_NOUNS = {"yaml": "yaml", "pcd": "cloud", "png": "image"}

# What OPV2V's additional.zip, OPV2V-H, HEAL and this project lay beside the frames.
_KNOWN_EXTRA = re.compile(
    r"\d+_(bev_\w+|view\w*|additional\w*)\.png|\d+_depth\d\.png|\d+_camera\d_depth\.(npy|png)|\d+_\d\d\.pcd"
    r"|\d+\.json|\d+_imgs\.hdf5|data_protocol\.yaml|\..*"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A defect of the released data, by what is known of it (empty: all)."""

    scenario: str
    agent: str
    frame: str
    message: str


KNOWN_DEFECTS = (
    Known("2021_09_09_13_20_58", "", "", "camera3 is missing or faulty (OpenCOOD#167, CoBEVT: delete the scenario)"),
    Known("2021_08_20_21_10_24", "", "000265", "the frame is not usable (HEAL skips it)"),
    Known("2021_08_18_09_02_56", "449", "", "its cloud is reported as rotated and corrupt (OpenCOOD#170)"),
)


@dataclass(slots=True)
class AgentScan:
    """One agent's folder.

    Attributes:
        frames: of each frame, the bits of the files that can be opened, and of the cameras whose depth can.
        num_on_disk: frames in the folder, selected or not.
    """

    split: str
    scenario: str
    agent: str
    frames: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_on_disk: int = 0
    problems: list[Problem] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str, frame: str = "", file: str = "") -> None:
        self.problems.append(Problem(self.split, self.scenario, self.agent, frame, file, kind, message))


@dataclass(slots=True)
class TreeScan:
    """A data set's folders. `problems` are those of no single agent's folder."""

    splits: list[str]
    scenarios: list[tuple[str, str]] = field(default_factory=list)
    agents: list[AgentScan] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def scan_tree(
    root: Path,
    depth: DepthLayout | None,
    selection: Selection,
    jobs: int,
    show: Callable[[Iterable[AgentScan], int], Iterable[AgentScan]] = lambda scans, total: scans,
) -> TreeScan:
    """Scans a data set.

    Args:
        show: wraps the scans to come and their number: a progress bar.

    Raises:
        InputError: the root, a split or the depth root is wrong, or a named scenario, agent or frame is nowhere.
    """
    tree = _folders(root, selection)
    todo = tree.agents
    with ThreadPoolExecutor(max_workers=min(2 * jobs, 16)) as pool:  # waits for the disk, mostly
        scans = pool.map(lambda agent: scan_agent(root, agent, depth, selection.frames), todo)
        tree.agents = list(show(scans, len(todo)))
    for frame in selection.frames:
        if not any(frame in agent.frames for agent in tree.agents):
            raise InputError(f"{root}: no frame '{frame}' in {', '.join(tree.splits)}; `./invoke tree` lists what is there")
    tree.problems += _frames_differ(tree.agents)
    tree.problems += known_defects(tree)
    if depth is not None:
        tree.problems += _depth_orphans(root, tree.splits, depth)
    return tree


def _folders(root: Path, selection: Selection) -> TreeScan:
    """Splits, scenarios and agents, nothing scanned yet."""
    for split in selection.splits:
        if os.path.islink(root / split) and not os.path.exists(root / split):
            raise InputError(f"{root / split}: is a link to {os.readlink(root / split)}, which is not there; mount it")
    tree = TreeScan(find_splits(root, selection.splits))
    if not selection.splits:
        tree.problems += _dangling(root, SPLITS)
    tree.problems += _same_splits(root, tree.splits)
    seen_agents: set[str] = set()
    for split in tree.splits:
        tree.problems += _dangling(root, (), split)
        for scenario in list_folders(root / split):
            if selection.scenarios and scenario not in selection.scenarios:
                continue
            tree.scenarios.append((split, scenario))
            try:
                agents = sorted(list_folders(root / split / scenario), key=agent_order)
            except InputError as error:
                tree.problems.append(Problem(split, scenario, "", "", "", "unreadable", _short(error)))
                continue
            dangling = list(_dangling(root, (), split, scenario))
            tree.problems += dangling
            if not agents and not dangling:
                tree.problems.append(Problem(split, scenario, "", "", "", "empty-scenario", "holds no agent folder"))
            seen_agents.update(agents)
            tree.agents += [
                AgentScan(split, scenario, agent) for agent in agents if not selection.agents or agent in selection.agents
            ]
    seen = {"scenario": {scenario for _, scenario in tree.scenarios}, "agent": seen_agents}
    for kind, names in (("scenario", selection.scenarios), ("agent", selection.agents)):
        for name in names:
            if name not in seen[kind]:
                where = ", ".join(tree.splits)
                raise InputError(f"{root}: no {kind} '{name}' in {where}; `./invoke tree` lists what is there")
    return tree


def _short(error: InputError) -> str:
    """The message without the file's name, which the problem carries, and which differs from host to host."""
    return str(error).split(": ", 1)[-1]


def _dangling(root: Path, only: tuple[str, ...], *parts: str) -> Iterator[Problem]:
    """Links in a folder that lead nowhere: a split, scenario or agent whose disk is not mounted."""
    for name in broken_links(root, *parts, only=only):
        split, scenario, agent = [*name.split("/"), "", ""][:3]
        yield Problem(split, scenario, agent, "", name, "dangling-link", LEADS_NOWHERE)


def _same_splits(root: Path, splits: list[str]) -> Iterator[Problem]:
    """test_culver_city beside a link test_culvercity, for instance: every frame would be there twice."""
    places: dict[str, str] = {}
    if {"test_culver_city", "test_culvercity"} <= set(splits):
        splits = [split for split in splits if split != "test_culvercity"]
        message = "is another name of test_culver_city, which is there too"
        yield Problem("test_culvercity", "", "", "", "", "same-split", message)
    for split in splits:
        first = places.setdefault(os.path.realpath(root / split), split)
        if first != split:
            yield Problem(split, "", "", "", "", "same-split", f"is the same folder as {first}")


def file_sizes(folder: Path) -> dict[str, int]:
    """Sizes of a folder's files by name; DANGLING, NOT_A_FILE or UNREADABLE for what is none."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
                sizes[entry.name] = status.st_size if stat.S_ISREG(status.st_mode) else NOT_A_FILE
            except OSError:
                sizes[entry.name] = DANGLING if entry.is_symlink() else UNREADABLE
    return sizes


def scan_agent(root: Path, scan: AgentScan, depth: DepthLayout | None, selected: tuple[str, ...]) -> AgentScan:
    """Fills in one agent's folder."""
    folder = f"{scan.split}/{scan.scenario}/{scan.agent}"
    try:
        sizes = file_sizes(root / folder)
    except OSError as error:
        scan.add("unreadable", error.strerror or str(error))
        return scan
    found: dict[str, int] = {}
    for name, size in sizes.items():
        match = FRAME_FILE.match(name)
        if match:
            found[match[1]] = found.get(match[1], 0) | (FRAME_BITS[match[2]] if size > 0 else 0)
        elif not _KNOWN_EXTRA.fullmatch(name):
            scan.unknown.append(f"{folder}/{name}")
    scan.num_on_disk = len(found)
    if not found:
        scan.add("empty-agent", "holds no frame")
    depth_sizes: dict[str, dict[str, int]] = {}
    for frame in sorted(found):
        if selected and frame not in selected:
            continue
        bits = found[frame]
        if bits != COMPLETE:
            _missing_files(scan, folder, frame, bits, sizes)
        scan.frames[frame] = (bits, _depth_bits(scan, frame, depth, depth_sizes) if depth else 0)
    return scan


def _missing_files(scan: AgentScan, folder: str, frame: str, bits: int, sizes: dict[str, int]) -> None:
    for bit, (suffix, ending) in _SUFFIXES.items():
        if not bits & bit:
            name = f"{frame}{suffix}"
            _add_state(scan, frame, f"{folder}/{name}", _NOUNS[ending], sizes.get(name))


def _add_state(scan: AgentScan, frame: str, file: str, what: str, size: int | None) -> None:
    kind, message = ("missing-{what}", "is missing") if size is None else _STATES[size]
    scan.add(kind.format(what=what), message, frame, file)


def _depth_bits(scan: AgentScan, frame: str, depth: DepthLayout, cache: dict[str, dict[str, int]]) -> int:
    """The cameras whose depth map can be opened; the others become problems. `cache` keeps the folders' files."""
    bits = 0
    for camera, bit in enumerate(CAMERA):
        path = str(depth.path(FrameKey(scan.split, scan.scenario, scan.agent, frame), camera))
        folder, name = os.path.split(path)
        if folder not in cache:
            try:
                cache[folder] = file_sizes(Path(folder))
            except OSError:
                cache[folder] = {}
        size = cache[folder].get(name)
        if size is not None and size > 0:
            bits |= bit
        else:
            _add_state(scan, frame, os.path.relpath(path, depth.root), "depth", size)
    return bits


def _frames_differ(agents: list[AgentScan]) -> Iterator[Problem]:
    """One problem for each agent that lacks frames another agent of its scenario has."""
    scenarios: dict[tuple[str, str], list[AgentScan]] = {}
    for agent in agents:
        if agent.frames:
            scenarios.setdefault((agent.split, agent.scenario), []).append(agent)
    for (split, scenario), members in scenarios.items():
        union = {frame for member in members for frame in member.frames}
        for member in members:
            lacking = sorted(union - member.frames.keys())
            if lacking:
                names = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
                message = f"lacks {len(lacking)} of the scenario's {len(union)} frames: {names}"
                yield Problem(split, scenario, member.agent, "", "", "frames-differ", message)


def known_defects(tree: TreeScan) -> Iterator[Problem]:
    """Names what is there and known to be broken."""
    for known in KNOWN_DEFECTS:
        if not known.agent and not known.frame:
            places = {(split, name, "", "") for split, name in tree.scenarios if name == known.scenario}
        else:
            places = {
                (scan.split, scan.scenario, scan.agent, known.frame)
                for scan in tree.agents
                if scan.scenario == known.scenario
                and known.agent in ("", scan.agent)
                and (not known.frame or known.frame in scan.frames)
            }
        for place in sorted(places):
            yield Problem(*place, "", "known-defect", known.message)


def _depth_orphans(root: Path, splits: list[str], depth: DepthLayout) -> Iterator[Problem]:
    """Depth of scenarios that the images lack: another data set's depth, most likely."""
    if not depth.pattern.startswith("{split}/{scenario}/") or not depth.root.is_dir():
        return
    for split in splits:
        if not (depth.root / split).is_dir():
            continue
        images, maps = set(list_folders(root / split)), set(list_folders(depth.root / split))
        for scenario in sorted(maps - images):
            message = "has depth but no images" if maps & images else "has depth but no images; no scenario has both"
            yield Problem(split, scenario, "", "", "", "depth-orphan", message)
