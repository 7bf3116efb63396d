"""The scenes that are evaluated: timestamps, seen once by one vehicle and once by several, so that the two can be compared.

Names only, no file of the data set is opened. The same arguments give the same scenes in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mapanything.errors import InputError
from mapanything.inference.select import MAIN_AGENT, find_scenes
from mapanything.opv2v.layout import Selection, find_splits
from mapanything.results.record import SceneKey

MODES = ("single", "coop")
DEFAULT_SPLITS = ("test", "validate")  # the first that is there: a figure of training frames says little


@dataclass(frozen=True, slots=True)
class SceneChoice:
    """A choice of scenes of a data set.

    Attributes:
        selection: splits, scenarios, agents, frames; without splits, the first of `DEFAULT_SPLITS` that is there.
        frames: a file that lists them instead.
        sample: so many timestamps, drawn by `seed`; None: all.
        num_views: most views of a scene, whole vehicles first. min_agents: fewest vehicles of a timestamp.
        main_agent: where it is there, else the first vehicle.
        every_agent: mode single looks at every vehicle of a timestamp, not at the main agent alone.
    """

    selection: Selection = field(default_factory=Selection)
    frames: Path | None = None
    sample: int | None = None
    seed: int = 0
    num_views: int | None = 8
    min_agents: int = 2
    main_agent: str = MAIN_AGENT
    every_agent: bool = False


def list_scenes(root: Path, choice: SceneChoice, modes: Sequence[str] = MODES) -> dict[str, list[SceneKey]]:
    """The scenes of each mode, in order of their names; both modes see the same timestamps.

    Raises:
        InputError: names that are not there, too few timestamps to draw from, a bad list file (with its line).
    """
    timestamps, singles = _listed(root, choice) if choice.frames else _selected(root, choice)
    if choice.sample is not None:
        total = len(timestamps)
        if choice.sample > total:
            raise InputError(f"{root}: a sample of {choice.sample} timestamps was asked for, but there are {total}")
        drawn = np.random.default_rng(choice.seed).choice(total, choice.sample, replace=False)
        timestamps = [timestamps[i] for i in sorted(drawn)]
    seen = {_place(key, choice) for key in timestamps}
    both = {"single": [key for key in singles if _place(key, choice) in seen], "coop": timestamps}
    return {mode: both[mode] for mode in modes}


def _place(key: SceneKey, choice: SceneChoice) -> tuple[str, ...]:
    """The part of a name that a scene of mode single shares with the coop scene it is to be compared with."""
    timestamp = (key.split, key.scenario, key.frame)
    return timestamp if choice.every_agent else (*timestamp, key.main_agent)


def _selected(root: Path, choice: SceneChoice) -> tuple[list[SceneKey], list[SceneKey]]:
    selection = choice.selection
    if not selection.splits:
        present = find_splits(root)
        default = next((split for split in DEFAULT_SPLITS if split in present), None)
        selection = replace(selection, splits=(default,) if default else ())
    return _find(root, selection, choice, choice.main_agent)


def _find(root: Path, selection: Selection, choice: SceneChoice, main_agent: str) -> tuple[list[SceneKey], list[SceneKey]]:
    coop = find_scenes(
        root,
        selection,
        "coop",
        num_views=choice.num_views,
        min_agents=choice.min_agents,
        main_agent=main_agent,
    )
    return _ordered(coop), _ordered(find_scenes(root, selection, "single", num_views=choice.num_views))


def _ordered(keys: Iterable[SceneKey]) -> list[SceneKey]:
    return sorted(set(keys), key=lambda key: (key.split, key.scenario, key.frame, key.agents))


def _listed(root: Path, choice: SceneChoice) -> tuple[list[SceneKey], list[SceneKey]]:
    assert choice.frames is not None
    groups: dict[tuple[str, str, str], dict[str, int]] = {}  # (split, scenario, agent): frame -> line
    for number, (split, scenario, agent, frame) in read_frames(choice.frames).items():
        groups.setdefault((split, scenario, agent), {}).setdefault(frame, number)
    coop: list[SceneKey] = []
    single: list[SceneKey] = []
    for (split, scenario, agent), lines in groups.items():
        try:
            selection = Selection((split,), (scenario,), (), tuple(lines))
            found, singles = _find(root, selection, choice, agent or choice.main_agent)
        except InputError as error:
            raise InputError(f"{choice.frames}, line {min(lines.values())} or after: {error}") from error
        for frame, number in lines.items():
            keys = [key for key in found if key.frame == frame]
            if not keys:
                raise InputError(
                    f"{choice.frames}, line {number}: {split}/{scenario}/{frame} has fewer than {choice.min_agents} vehicles; "
                    "give --min-agents 1 or leave it out"
                )
            if agent and keys[0].main_agent != agent:
                raise InputError(
                    f"{choice.frames}, line {number}: agent {agent} is not at this timestamp of {split}/{scenario}, "
                    f"where {', '.join(keys[0].agents)} are"
                )
        coop += found
        single += singles
    return _ordered(coop), _ordered(single)


def read_frames(path: Path) -> dict[int, tuple[str, str, str, str]]:
    """A list file: `split/scenario/frame` or `split/scenario/agent/frame` a line; `#` begins a comment.

    Returns:
        (split, scenario, agent or '', frame) by line number, from 1.

    Raises:
        InputError: not there, no text, empty, or a line that is neither.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text; give a list of split/scenario/frame lines") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a list of split/scenario/frame lines") from error
    entries = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip().strip("/")
        if not text:
            continue
        parts = [part.strip() for part in text.split("/")]
        if len(parts) not in (3, 4) or not all(parts) or not parts[-1].isdecimal():
            raise InputError(f"{path}, line {number}: '{text[:80]}'; give split/scenario/frame or split/scenario/agent/frame")
        entries[number] = (parts[0], parts[1], parts[2] if len(parts) == 4 else "", parts[-1])
    if not entries:
        raise InputError(f"{path}: names no frame; give split/scenario/frame lines")
    return entries
