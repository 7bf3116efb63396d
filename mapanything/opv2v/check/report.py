"""The result of a check: the kinds of problem, their counts, and the report for a person, a program and the training.

A report holds nothing that differs between two hosts with the same data: no times, no absolute file names, one order.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mapanything.errors import InputError
from mapanything.files import check_writable, write_atomic
from mapanything.opv2v.check.hidden import Labels
from mapanything.opv2v.depth_root import DepthRoot

FORMAT = 1  # of the JSON report
SHOWN = 3  # problems of a scenario on the console
SHOWN_SCENARIOS = 8  # scenarios of a kind on the console


class Kind(NamedTuple):
    """A kind of problem.

    Attributes:
        meaning: what is wrong and what to do about it, one line.
        excludes: whether training must skip what has it.
        severity: a "warning" does not make the verdict bad.
    """

    meaning: str
    excludes: bool = True
    severity: str = "error"


AGAIN = "copy or unpack it again"
KINDS: dict[str, Kind] = {
    # names and sizes
    "missing-yaml": Kind(f"frames without their YAML: {AGAIN}"),
    "missing-image": Kind(f"frames without one of their four images: {AGAIN}"),
    "missing-cloud": Kind(f"frames without their LiDAR cloud: {AGAIN}"),
    "missing-depth": Kind("frames without a depth map of a camera: `./invoke make-depth` makes those that are missing"),
    "empty-yaml": Kind(f"YAML files of 0 bytes: {AGAIN}"),
    "empty-image": Kind(f"images of 0 bytes: {AGAIN}"),
    "empty-cloud": Kind(f"clouds of 0 bytes or 0 points: {AGAIN}"),
    "empty-depth": Kind("depth maps of 0 bytes: delete them and run `./invoke make-depth`"),
    "dangling-link": Kind("links that lead nowhere: is the disk they point to mounted?"),
    "not-a-file": Kind("folders, pipes or devices where a file is due: remove them"),
    "unreadable": Kind("files or folders that can't be read: check permissions and the disk"),
    "frames-differ": Kind("agents of a scenario with different frames; training uses the common ones", excludes=False),
    "empty-agent": Kind("agent folders without a frame: remove or unpack them again", excludes=False),
    "empty-scenario": Kind("scenario folders without an agent: remove or unpack them again", excludes=False),
    "same-split": Kind("two splits that are the same folder: its data count twice; remove one link", excludes=False),
    "depth-orphan": Kind("depth of scenarios without images: is it another data set's depth root?", excludes=False),
    "known-defect": Kind("known to be broken in the released data; --write-exclude leaves them out", severity="warning"),
    # what the files say
    "corrupt-yaml": Kind(f"YAML files that are broken or lack a field: {AGAIN}"),
    "corrupt-image": Kind(f"images that are truncated or corrupt: {AGAIN}"),
    "corrupt-cloud": Kind(f"clouds that are truncated or corrupt: {AGAIN}"),
    "corrupt-depth": Kind("depth maps that are truncated or corrupt: delete them and run `./invoke make-depth`"),
    "missing-camera": Kind("YAML files that do not describe a camera: there is no pose to train it with"),
    "image-size": Kind("images whose size does not fit the intrinsics: were they resized?"),
    "depth-size": Kind("depth maps whose size is not their image's: make them again from these images"),
    "bad-rotation": Kind("`extrinsic` matrices whose rotation is none: was the YAML edited or converted?"),
    "extrinsic-differs": Kind("`extrinsic` disagrees with `cords` and `lidar_pose`: one of the poses is wrong"),
    # what is in them
    "blank-image": Kind("images of one single colour: the camera saw nothing"),
    "no-echo": Kind("clouds with points that are NaN or infinite; they are passed over", False, "warning"),
    "bad-points": Kind("clouds with points inside the sensor or beyond its range"),
    "cloud-misplaced": Kind("clouds that miss the vehicles they should have hit: rotated, mirrored or of another frame"),
    "bad-depth": Kind("depth maps with NaN, infinite, negative or far-off values: make them again"),
    "blank-depth": Kind("depth maps without a known pixel: make them again"),
    "depth-kind": Kind("depth roots that are not what their depth.json says: one kind of maps in one root", excludes=False),
    "plain-depth": Kind("depth maps with labels behind what the camera sees", excludes=False, severity="warning"),
    "depth-differs": Kind("depth that disagrees with the LiDAR: other unit, scale, camera or frame?"),
    "vehicle-differs": Kind("vehicles that two agents list at different places at the same time: clocks or poses differ"),
}


class Problem(NamedTuple):
    """One thing that is wrong. Empty fields mean: all of it. `file` is relative to the image or depth root."""

    split: str
    scenario: str
    agent: str
    frame: str
    file: str
    kind: str
    message: str

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    @property
    def place(self) -> str:
        return "/".join(part for part in self[:4] if part)


@dataclass(slots=True)
class Report:
    """The result of a check.

    Attributes:
        options: what was asked, as given.
        agents: number of agent-frames on disk by (split, scenario) and agent, of every agent folder that is there.
        num_frames: agent-frames that were checked.
        depth: what the depth maps are, as depth.json says or as they look; None: no depth, or nobody knows.
        labels: of a deep check's depth maps, how many lie behind annotated vehicles.
        unknown: names of files that no frame and no known extra of OPV2V has; noted, no problem.
    """

    options: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    agents: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    num_frames: int = 0
    num_scenarios: int = 0
    num_splits: int = 0
    depth: DepthRoot | None = None
    labels: Labels = field(default_factory=Labels)
    unknown: list[str] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)

    def by_kind(self) -> dict[str, list[Problem]]:
        """Problems by kind, kinds in the order of `KINDS`."""
        groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
        for problem in self.problems:
            groups[problem.kind].append(problem)
        return {kind: group for kind, group in groups.items() if group}


def console_lines(report: Report) -> Iterator[str]:
    """The report for a person: a group for each kind, long lists shortened."""
    for kind, problems in report.by_kind().items():
        mark = "warning " if KINDS[kind].severity == "warning" else ""
        yield f"{mark}{kind}: {len(problems)}  ({KINDS[kind].meaning})"
        scenarios: dict[str, list[Problem]] = defaultdict(list)
        for problem in problems:
            scenarios["/".join(filter(None, problem[:2])) or "data set"].append(problem)
        listed = 0
        # On a whole data set with the same fault everywhere one example a scenario is enough.
        examples = SHOWN if len(scenarios) <= 2 else 1
        most_first = sorted(scenarios.items(), key=lambda item: -len(item[1]))
        for scenario, members in most_first[:SHOWN_SCENARIOS]:
            yield f"  {scenario}: {len(members)}"
            limit = len(members) if len(problems) <= 10 else examples
            for problem in members[:limit]:
                yield f"    {problem.file or problem.place}: {problem.message}"
                listed += 1
        if listed < len(problems):
            others = len(scenarios) - SHOWN_SCENARIOS
            where = f" (also in {others} other scenarios)" if others > 0 else ""
            yield f"    … and {len(problems) - listed} more{where}: --report FILE lists all"
    if report.depth is not None:
        yield f"depth: {report.depth}"
    if report.labels.count:
        yield f"depth labels behind annotated vehicles: {_hidden(report.labels)}"
    if report.unknown:
        count = len(report.unknown)
        examples_text = ", ".join(report.unknown[:3]) + (", …" if count > 3 else "")
        yield f"note: {count} file{'s' * (count > 1)} with names that no frame has, not checked: {examples_text}"


def _hidden(labels: Labels) -> str:
    text = f"{labels.hidden / labels.count:.2%} of {labels.count:,}"
    return f"{text}, at most {labels.worst_share:.1%} of a map ({labels.worst_map})" if labels.hidden else text


def summary_line(report: Report, seconds: float) -> str:
    def counted(count: int, noun: str) -> str:
        return f"{count:,} {noun}{'' if count == 1 else 's'}"

    warnings = sum(problem.severity == "warning" for problem in report.problems)
    verdict = counted(len(report.problems) - warnings, "problem") if report.is_bad else "no problem"
    if warnings:
        verdict += f", {counted(warnings, 'warning')}"
    return (
        f"{counted(report.num_frames, 'agent-frame')}, {counted(report.num_scenarios, 'scenario')}, "
        f"{counted(report.num_splits, 'split')} checked in {seconds:.1f} s: {verdict}"
    )


def check_report_path(path: Path) -> None:
    """Refuses a report's name before hours of checking rather than after them."""
    if path.suffix not in (".json", ".csv"):
        raise InputError(f"--report {path}: must end in .json or .csv")
    check_file_writable(path)


def check_file_writable(path: Path) -> None:
    """Raises InputError where `path` can't become a file."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    check_writable(path.parent, "file name")


def write_report(report: Report, path: Path) -> None:
    """Writes all of it, as JSON or CSV by the file's name."""
    text = _csv(report) if path.suffix == ".csv" else _json(report)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _json(report: Report) -> str:
    kinds = {}
    for kind, problems in report.by_kind().items():
        scenarios = Counter("/".join(filter(None, problem[:2])) for problem in problems)
        kinds[kind] = {
            "severity": KINDS[kind].severity,
            "meaning": KINDS[kind].meaning,
            "count": len(problems),
            "scenarios": dict(sorted(scenarios.items())),
        }
    content = {
        "format": FORMAT,
        "options": report.options,
        "versions": versions(),
        "checked": {
            "agent_frames": report.num_frames,
            "scenarios": report.num_scenarios,
            "splits": report.num_splits,
        },
        "depth": report.depth.to_dict() if report.depth is not None else None,
        "depth_labels": asdict(report.labels) if report.labels.count else None,
        "verdict": "bad" if report.is_bad else "good",
        "counts": kinds,
        "problems": [{"kind": p.kind, "severity": p.severity, **_fields(p)} for p in report.problems],
        "unknown_files": report.unknown,
    }
    return json.dumps(content, indent=1) + "\n"


def _csv(report: Report) -> str:
    text = io.StringIO()
    columns = ["kind", "severity", "split", "scenario", "agent", "frame", "file", "message"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"kind": p.kind, "severity": p.severity, **_fields(p)} for p in report.problems)
    return text.getvalue()


def _fields(problem: Problem) -> dict[str, str]:
    names = ("split", "scenario", "agent", "frame", "file", "message")
    return {name: getattr(problem, name) for name in names}


def versions() -> dict[str, str]:
    """Versions of what decodes the files: another one may judge a file differently."""
    packages = ("numpy", "pillow", "isal", "pysimdjson", "PyYAML")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def exclusions(report: Report) -> list[tuple[tuple[str, ...], str]]:
    """The smallest set of what training must skip, each with its reason.

    An agent is excluded whole where all its frames on disk are, a scenario where all its agents are. What leaves
    nothing to skip (an agent without frames, differing frame lists) is not in it.
    """
    reasons: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    frames: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)  # excluded ones of an agent
    for problem in report.problems:
        parts = tuple(part for part in problem[:4] if part)
        if KINDS[problem.kind].excludes and len(parts) >= 2:
            reasons[parts][problem.kind] += 1
            if len(parts) == 4:
                frames[parts[:3]].add(parts)
    chosen: dict[tuple[str, ...], Counter[str]] = {}
    for scenario, agents in report.agents.items():
        if scenario in reasons:
            chosen[scenario] = reasons[scenario]
            continue
        below: dict[tuple[str, ...], Counter[str]] = {}
        for agent, num_frames in agents.items():
            name = (*scenario, agent)
            if name in reasons or (num_frames and len(frames[name]) == num_frames):
                below[name] = sum((reasons[parts] for parts in frames[name]), reasons[name])
            else:
                below |= {parts: reasons[parts] for parts in frames[name]}
        filled = [(*scenario, agent) for agent, num_frames in agents.items() if num_frames]
        if filled and all(name in below for name in filled):
            below = {scenario: sum(below.values(), Counter())}
        chosen |= below
    return [(parts, _reason(found)) for parts, found in sorted(chosen.items())]


def _reason(found: Counter[str]) -> str:
    return ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in sorted(found.items()))
