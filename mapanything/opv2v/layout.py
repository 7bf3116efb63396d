"""The places of an OPV2V data set's files: `{root}/{split}/{scenario}/{agent}/{frame}.yaml|.pcd|_camera{0..3}.png`.

One `os.scandir` per folder gives everything: no file is opened here. Agents of a scenario may have different frame lists;
nothing in this file assumes otherwise. Depth maps lie in a second root of the same shape (`DepthLayout`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mapanything.errors import InputError

CULVER_CITY = ("test_culver_city", "test_culvercity")  # the archive's name, the docs' name: the same data
SPLITS = ("train", "validate", "test", *CULVER_CITY)
NUM_CAMERAS = 4
LEADS_NOWHERE = "is a link that leads nowhere"
TESTS_ONLY = ".tests-only"  # a file of this name marks a data root that no training may use

# Bits of what a frame has, so that a split of 36,000 frames stays a small array.
YAML, PCD = 1, 2
CAMERA = tuple(4 << k for k in range(NUM_CAMERAS))
COMPLETE = YAML | PCD | sum(CAMERA)

SCENARIO = re.compile(r"\d{4}(_\d\d){5}")  # its first words are when it was recorded
FRAME_FILE = re.compile(r"(\d+)(\.yaml|\.pcd|_camera[0-3]\.png)\Z")
FRAME_BITS = {".yaml": YAML, ".pcd": PCD} | {f"_camera{k}.png": CAMERA[k] for k in range(NUM_CAMERAS)}


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a data set that is meant; an empty field means everything. Names are OPV2V's own, as strings."""

    splits: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class FrameKey:
    """The name of one agent-frame."""

    split: str
    scenario: str
    agent: str
    frame: str

    def __str__(self) -> str:
        return f"{self.split}/{self.scenario}/{self.agent}/{self.frame}"


@dataclass(frozen=True, slots=True)
class FramePaths:
    """The files of one agent-frame below an image root."""

    root: Path
    key: FrameKey

    @property
    def folder(self) -> Path:
        return self.root / self.key.split / self.key.scenario / self.key.agent

    @property
    def yaml(self) -> Path:
        return self.folder / f"{self.key.frame}.yaml"

    @property
    def pcd(self) -> Path:
        return self.folder / f"{self.key.frame}.pcd"

    def image(self, camera: int) -> Path:
        return self.folder / f"{self.key.frame}_camera{camera}.png"


@dataclass(slots=True)
class AgentFolder:
    """The content of one vehicle's folder. `frames` maps a frame to its bits; `others` are names no frame owns.

    A link that leads nowhere is no file: a frame lacks it.
    """

    split: str
    scenario: str
    agent: str
    path: Path
    frames: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def key(self, frame: str) -> FrameKey:
        return FrameKey(self.split, self.scenario, self.agent, frame)


def is_rsu(agent: str) -> bool:
    """Road-side units carry negative ids (V2XSet only)."""
    return agent.startswith("-")


def agent_order(agent: str) -> tuple[bool, str]:
    """OpenCOOD's order, with every road-side unit behind the vehicles: sorted as *strings*, so '1045' comes before '641'."""
    return (is_rsu(agent), agent)


def list_folders(path: Path) -> list[str]:
    """Names of the folders in `path` (links to folders included), sorted; hidden ones left out."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and _is_folder(e))
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}; check the path and its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link to itself is no folder; `broken_links` names it."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def broken_links(root: Path, *parts: str, only: Iterable[str] = ()) -> list[str]:
    """Links in a folder below `root` that lead nowhere, or to themselves, relative to it: their disk is not mounted."""
    try:
        with os.scandir(root.joinpath(*parts)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return []  # whoever lists the folder says so
    return ["/".join([*parts, name]) for name in names if not only or name in only]


def is_folder(path: Path) -> bool:
    """True if a folder is there; InputError where that can't be seen (no permission, a name too long)."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path and its permissions") from error


def find_splits(root: Path, wanted: Iterable[str] = ()) -> list[str]:
    """The splits below `root`, in OPV2V's order.

    Raises:
        InputError: `root` is missing, unreadable, one level too high or too low, or lacks a wanted split.
    """
    if not is_folder(root):
        if root.is_symlink():
            raise InputError(f"{root}: is a link to {os.readlink(root)}, which is not there; is the disk mounted?")
        raise InputError(f"{root}: no such folder; give the data set's root, the folder that holds train, validate, test")
    names = list_folders(root)
    present = [split for split in SPLITS if split in names]
    wanted = list(wanted)
    if not present:
        raise InputError(f"{root}: no split here ({', '.join(SPLITS[:4])}){_level_hint(root, names)}")
    for number, split in enumerate(wanted):
        if split in CULVER_CITY and split not in present:
            wanted[number] = split = next((name for name in CULVER_CITY if name in present), split)
        if split not in present:
            raise InputError(f"{root}: has no split '{split}'; it has {', '.join(present)}")
    return [split for split in present if split in wanted] if wanted else present


def _level_hint(root: Path, names: list[str]) -> str:
    """Names what to give instead, where the root is one level off."""
    below = [name for name in names if any(child in SPLITS for child in _quiet_list(root / name))]
    if below:  # any program has a folder `test`: the one that holds scenarios is meant
        with_scenarios = [name for name in below if any(map(SCENARIO.match, _grandchildren(root / name)))]
        return f"; one level too high: give {root / (with_scenarios or below)[0]}"
    parent = root.resolve().parent
    if root.name in SPLITS or root.resolve().name in SPLITS:
        return f"; one level too low: give {parent}"
    if parent.name in SPLITS:
        return f"; two levels too low: give {parent.parent}"
    return "; give the folder that holds the split folders"


def _grandchildren(root: Path) -> list[str]:
    return [scenario for split in _quiet_list(root) if split in SPLITS for scenario in _quiet_list(root / split)]


def _quiet_list(path: Path) -> list[str]:
    try:
        return list_folders(path)
    except InputError:
        return []


def _chosen(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in wanted] if wanted else names


def scan(root: Path, selection: Selection | None = None, broken: list[str] | None = None) -> Iterator[AgentFolder]:
    """Every vehicle's folder of a data set, one split, scenario and agent after the other.

    Args:
        broken: takes the links that lead nowhere, as `broken_links` gives them.

    Raises:
        InputError: as `find_splits`, or a named scenario, agent or frame is nowhere in the splits.
    """
    selection = selection or Selection()
    splits = find_splits(root, selection.splits)
    broken = [] if broken is None else broken
    if not selection.splits:
        broken += broken_links(root, only=SPLITS)
    seen: dict[str, set[str]] = {"scenario": set(), "agent": set(), "frame": set()}
    for split in splits:
        broken += broken_links(root, split)
        for scenario in _chosen(list_folders(root / split), selection.scenarios):
            seen["scenario"].add(scenario)
            broken += broken_links(root, split, scenario)
            agents = _chosen(list_folders(root / split / scenario), selection.agents)
            for agent in sorted(agents, key=agent_order):
                seen["agent"].add(agent)
                folder = scan_agent(root, split, scenario, agent, broken)
                if selection.frames:
                    folder.frames = {f: bits for f, bits in folder.frames.items() if f in selection.frames}
                    seen["frame"].update(folder.frames)
                yield folder
    asked = {"scenario": selection.scenarios, "agent": selection.agents, "frame": selection.frames}
    for kind, names in asked.items():
        missing = [name for name in names if name not in seen[kind]]
        if missing:
            raise InputError(f"{root}: no {kind} '{missing[0]}' in {', '.join(splits)}; `./invoke tree` lists what is there")


def scan_agent(root: Path, split: str, scenario: str, agent: str, broken: list[str] | None = None) -> AgentFolder:
    """One vehicle's folder; frames in order. `broken` takes its links that lead nowhere."""
    path = root / split / scenario / agent
    folder = AgentFolder(split, scenario, agent, path)
    found: dict[str, int] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                match = FRAME_FILE.match(entry.name)
                if match:
                    leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)
                    if leads_nowhere and broken is not None:
                        broken.append(f"{split}/{scenario}/{agent}/{entry.name}")
                    found[match[1]] = found.get(match[1], 0) | (0 if leads_nowhere else FRAME_BITS[match[2]])
                else:
                    folder.others.append(entry.name)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path and its permissions") from error
    folder.frames = dict(sorted(found.items()))
    folder.others.sort()
    return folder


DEPTH_PATTERN = "{split}/{scenario}/{agent}/{frame}_camera{camera}_depth.npy"


@dataclass(frozen=True, slots=True)
class DepthLayout:
    """The places of depth maps. `pattern` may name .npy files, 16-bit .png files or OPV2V-H's `{frame}_depth{camera}.png`."""

    root: Path
    pattern: str = DEPTH_PATTERN

    def __post_init__(self) -> None:
        fields = {"split": "s", "scenario": "s", "agent": "s", "frame": "0", "camera": 0}
        try:
            named = set(re.findall(r"{(\w+)}", self.pattern))
            self.pattern.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"depth pattern '{self.pattern}': {error}; it may use {{{'}, {'.join(fields)}}}") from error
        # Without one of them several maps would share a file; scenarios differ in name from split to split.
        if not fields.keys() - {"split"} <= named or re.search(r"{[^}]*[.\[!:]", self.pattern):
            raise InputError(f"depth pattern '{self.pattern}': must use {{scenario}}, {{agent}}, {{frame}}, {{camera}}, plain")
        if not self.pattern.endswith((".npy", ".png")):
            raise InputError(f"depth pattern '{self.pattern}': must end in .npy or .png")

    def path(self, key: FrameKey, camera: int) -> Path:
        name = self.pattern.format(split=key.split, scenario=key.scenario, agent=key.agent, frame=key.frame, camera=camera)
        return self.root / name
