"""Checks a data set: names and sizes first, then (standard, deep) every file, over all cores.

Work is cut into pieces of a few timestamps with all their agents, so that what agents must agree on is compared where
it was read. Results are sorted: the number of processes does not show in the report.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mapanything.errors import InputError
from mapanything.opv2v import depth_root
from mapanything.opv2v.check.content import Context, FrameFiles, check_timestamp
from mapanything.opv2v.check.hidden import Labels
from mapanything.opv2v.check.report import Problem, Report
from mapanything.opv2v.check.scan import AgentScan, TreeScan, scan_tree
from mapanything.opv2v.depth_root import DepthRoot
from mapanything.opv2v.layout import DepthLayout, FrameKey, Selection, find_splits
from mapanything.processes import holding_ctrl_c

Found = tuple[int, list[Problem], Labels]  # of how many agent-frames
Level = Literal["quick", "standard", "deep"]
PIECE = 12  # agent-frames of a piece of work: under half a second, so that Ctrl-C and the progress bar are prompt


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The data to check, and how. `progress` None: a bar on a terminal only."""

    root: Path
    depth: DepthLayout | None = None
    selection: Selection = field(default_factory=Selection)
    level: Level = "standard"
    jobs: int = 1
    progress: bool | None = None

    def as_given(self) -> dict[str, Any]:
        """Options that decide the result, for the report; not the number of processes."""
        selection = self.selection
        return {
            "root": str(self.root),
            "depth_root": str(self.depth.root) if self.depth else None,
            "depth_pattern": self.depth.pattern if self.depth else None,
            "level": self.level,
            "splits": list(selection.splits),
            "scenarios": list(selection.scenarios),
            "agents": list(selection.agents),
            "frames": list(selection.frames),
        }


def run_checks(options: CheckOptions) -> Report:
    """Checks everything that is selected and names all problems.

    Raises:
        InputError: the root, the depth root or the selection is wrong; a worker process was killed.
    """
    if options.depth is not None:
        _check_depth_root(options.depth)
    tqdm.monitor_interval = 0  # no thread: processes are forked later

    def show(scans: Iterable[AgentScan], total: int) -> Iterable[AgentScan]:
        return _bar(scans, total, "names", "folder", options.progress)

    tree = scan_tree(options.root, options.depth, options.selection, options.jobs, show)
    report = Report(
        options=options.as_given(),
        problems=tree.problems + [problem for agent in tree.agents for problem in agent.problems],
        agents=_agents_on_disk(options.root, tree),
        num_frames=sum(len(agent.frames) for agent in tree.agents),
        num_scenarios=len(tree.scenarios),
        num_splits=len(tree.splits),
        unknown=sorted(name for agent in tree.agents for name in agent.unknown),
    )
    if options.depth is not None:
        report.depth, found = _depth_kind(options.root, options.depth)
        report.problems += found
    if options.level != "quick":
        context = Context(options.root, options.depth, options.level == "deep")
        _check_contents(context, list(_pieces(tree)), options, report)
    report.problems.sort()
    return report


def _check_depth_root(depth: DepthLayout) -> None:
    try:
        if depth.pattern.startswith("{split}/"):
            find_splits(depth.root)
        elif not depth.root.is_dir():
            raise InputError(f"{depth.root}: no such folder; give the folder that holds the depth maps")
    except InputError as error:
        raise InputError(f"--depth-root {error}") from error


def _depth_kind(root: Path, depth: DepthLayout) -> tuple[DepthRoot | None, list[Problem]]:
    """The kind of the depth maps, and what is wrong with it."""

    def problem(kind: str, message: str) -> Problem:
        return Problem("", "", "", "", depth_root.NAME, kind, message)

    try:
        kind = depth_root.look(depth)
    except InputError as error:
        return None, [problem("depth-kind", str(error).removeprefix(f"{depth.root / depth_root.NAME}: "))]
    if kind is None or not kind.is_plain:
        return kind, []
    command = shlex.join(["./invoke", "make-depth", "--root", str(root), "--depth-root", str(depth.root), "--overwrite"])
    return kind, [problem("plain-depth", f"the maps are {kind}; `{command}` makes them again")]


def _agents_on_disk(root: Path, tree: TreeScan) -> dict[tuple[str, str], dict[str, int]]:
    """Frames by scenario and agent, for the exclude file. An agent that was not selected has an unknown number, -1."""
    agents: dict[tuple[str, str], dict[str, int]] = {}
    for split, scenario in tree.scenarios:
        agents[split, scenario] = {}
        with contextlib.suppress(OSError):
            names = [entry.name for entry in os.scandir(root / split / scenario) if entry.is_dir()]
            agents[split, scenario] = {name: -1 for name in sorted(names) if not name.startswith(".")}
    for scan in tree.agents:
        agents[scan.split, scan.scenario][scan.agent] = scan.num_on_disk
    return agents


def _pieces(tree: TreeScan) -> Iterator[list[list[FrameFiles]]]:
    """The work: lists of timestamps, each a list of the agents that have something to read there."""
    scenarios: dict[tuple[str, str], dict[str, list[FrameFiles]]] = {}
    for scan in tree.agents:
        frames = scenarios.setdefault((scan.split, scan.scenario), {})
        for frame, (bits, depth_bits) in scan.frames.items():
            if bits or depth_bits:
                key = FrameKey(scan.split, scan.scenario, scan.agent, frame)
                frames.setdefault(frame, []).append(FrameFiles(key, bits, depth_bits))
    for frames in scenarios.values():
        piece: list[list[FrameFiles]] = []
        for frame in sorted(frames):
            piece.append(frames[frame])
            if sum(map(len, piece)) >= PIECE:
                yield piece
                piece = []
        if piece:
            yield piece


def _check_piece(context: Context, piece: list[list[FrameFiles]]) -> Found:
    labels = Labels()
    problems = [problem for timestamp in piece for problem in check_timestamp(context, timestamp, labels)]
    return sum(map(len, piece)), problems, labels


def _check_contents(context: Context, pieces: list[list[list[FrameFiles]]], options: CheckOptions, report: Report) -> None:
    """Adds what is found in files to the report."""
    jobs = min(options.jobs, len(pieces))
    with contextlib.ExitStack() as stack:
        if jobs <= 1:
            results: Iterable[Found] = (_check_piece(context, piece) for piece in pieces)
        else:
            results = stack.enter_context(_in_processes(context, pieces, jobs))
        bar = stack.enter_context(_bar(None, report.num_frames, options.level, "frame", options.progress))
        for count, found, labels in results:
            report.problems += found
            report.labels.add(labels)
            bar.update(count)


@contextlib.contextmanager
def _in_processes(context: Context, pieces: list[list[list[FrameFiles]]], jobs: int) -> Iterator[Iterator[Found]]:
    """Results as they come. However it ends, no worker process stays behind."""
    # fork: nothing is imported twice. This process has no threads here, and never has a GPU.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=_start_worker)
    try:
        # The pool may end a worker before it has let go of this process's own answer to SIGTERM: then it is to wait for that.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with holding_ctrl_c():
                futures = [pool.submit(_check_piece, context, piece) for piece in pieces]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield _finished(futures)
    except BrokenProcessPool as error:
        raise InputError(
            f"a worker process was killed, most likely for lack of memory; try again with --jobs {max(1, jobs // 2)}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(futures: list[Future[Found]]) -> Iterator[Found]:
    for future in as_completed(futures):
        yield future.result()


def _start_worker() -> None:
    """A worker ends when the parent does, even when that was killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _bar(items: Iterable[Any] | None, total: int, what: str, unit: str, progress: bool | None) -> Any:
    disable = None if progress is None else not progress  # tqdm's None: only on a terminal
    return tqdm(items, total=total, desc=what, unit=f" {unit}s", disable=disable, leave=False, dynamic_ncols=True)
