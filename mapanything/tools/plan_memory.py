"""What fits on a card, before it is tried: a table of batches × ways to save memory, from a traced training step.

Every figure in the table is a step of its own, traced with fake tensors (train/memory.py); nothing is interpolated. What
does not fit is said, too, and by how much. The limits at the end are looked for: a line through two traced points says where
to look, the traces there decide.

Exit code: 0 something fits, 1 nothing does, 2 bad input. With --measure: 0 when the plan is within 10 % of the GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from mapanything.cli.network import PLAN_MEMORY
from mapanything.errors import InputError, run_command
from mapanything.processes import holding_ctrl_c

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mapanything.train.memory import Overhead, Peak, Shape, Trace

RESOLUTIONS = ((448, 252), (518, 392))
SPARE_GIB = 1.0  # with less left over, a plan is no promise
MOST = 64  # views or scenes; nobody asks for more
TOLERANCE = 0.1  # of a measured step

ENCODER, MULTIVIEW, HEADS = (f"model.{part}.gradient_checkpointing=true" for part in ("encoder", "multiview", "heads"))
FREED = tuple(entry.replace("true", "false") for entry in (ENCODER, MULTIVIEW, HEADS))


@dataclass(frozen=True)
class Way:
    """A way to train; ordered by what it costs: time first, then what is no longer learned."""

    learns: str
    checkpointing: str
    overrides: tuple[str, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides that make it so whatever the stage says."""
        named = {entry.split("=")[0] for entry in self.overrides}
        return tuple(entry for entry in FREED if entry.split("=")[0] not in named) + self.overrides


FROZEN, ONLY_HEADS = "train_params=frozen_encoder", "train_params=heads_only"
WAYS = (
    Way("everything", "none", ()),
    Way("everything", "encoder", (ENCODER,)),
    Way("everything", "encoder, multi-view", (ENCODER, MULTIVIEW)),
    Way("everything", "encoder, multi-view, heads", (ENCODER, MULTIVIEW, HEADS)),
    Way("all but the encoder", "none", (FROZEN,)),
    Way("all but the encoder", "multi-view", (FROZEN, MULTIVIEW)),
    Way("all but the encoder", "multi-view, heads", (FROZEN, MULTIVIEW, HEADS)),
    Way("heads only", "none", (ONLY_HEADS,)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = PLAN_MEMORY.parse(arguments)
    plan = Planner.read(args)
    if args.measure:
        return plan.measure(args.json)
    with plan.tracing(args.jobs):
        return plan.print_json() if args.json else plan.print_table()


@dataclass
class Planner:
    """What was asked, and the traces made so far."""

    stage: int
    gpu_gib: float
    world_size: int
    given: tuple[str, ...]  # overrides of the user
    config: DictConfig
    columns: list[Shape]
    stage_shapes: list[Shape]  # none of them may be too large
    traces: dict[tuple[tuple[str, ...], Shape], Trace]
    pool: ProcessPoolExecutor | None = None

    @classmethod
    def read(cls, args: argparse.Namespace) -> Planner:
        """
        Raises:
            InputError: an option that makes no sense.
        """
        from mapanything.train.stages import compose_config

        given = tuple(([f"model={args.model}"] if args.model else []) + args.o)
        config = compose_config([f"stage=stage{args.stage}", *given])
        world_size = _number("--world-size", args.world_size) if args.world_size else int(config.distributed.world_size)
        gpu_gib = _number("--gpu-gb", args.gpu_gb, float)
        resolution = tuple(config.dataset.resolution)
        resolutions = _resolutions(args.resolution) if args.resolution else [resolution, *RESOLUTIONS]
        counts = _counts(
            config,
            _numbers("--views", args.views) if args.views else None,
            _numbers("--batch", args.batch) if args.batch else None,
        )
        from mapanything.train.memory import Shape

        resolutions = list(dict.fromkeys(resolutions))
        here = [Shape(v, b, *resolutions[0]) for v, b in counts]
        # Of two with as many images the one with more views stands for both in the table; what is advised is tried on all.
        columns = {shape.images: shape for shape in reversed(here)}
        asked = bool(args.resolution or args.views or args.batch)
        others = [Shape(v, b, *size) for size in resolutions[1:] for v, b in (counts if asked else counts[:1])]
        return cls(int(args.stage), gpu_gib, world_size, given, config, [*reversed(columns.values()), *others], here, {})

    # Traces

    @contextmanager
    def tracing(self, jobs: int) -> Iterator[None]:
        """Processes to trace in, while this lasts; with one job this process does it."""
        if jobs == 1:
            yield
            return
        # Spawned, not forked: torch's threads and locks do not survive a fork.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start) as self.pool:
            yield

    def trace(self, ways: Sequence[Way], shapes: Sequence[Shape]) -> None:
        """Traces what has not been traced yet, several at a time."""
        keys = [(way.settings, shape) for way in ways for shape in shapes if (way.settings, shape) not in self.traces]
        calls = [((f"stage=stage{self.stage}", *self.given, *settings), shape) for settings, shape in keys]
        apply = map if self.pool is None else self.pool.map
        with holding_ctrl_c():
            results = apply(_trace, *zip(*calls)) if calls else ()
        show = sys.stderr.isatty() and len(keys) > 1
        for number, (key, result) in enumerate(zip(keys, results), 1):
            self.traces[key] = result
            if show:
                end = "\n" if number == len(keys) else ""
                print(f"\rtraced {number} of {len(keys)} steps", end=end, file=sys.stderr, flush=True)

    @property
    def strategies(self) -> tuple[str, ...]:
        return ("ddp", "fsdp") if self.world_size > 1 else ("single",)

    def peak(self, way: Way, shape: Shape, strategy: str) -> Peak:
        self.trace([way], [shape])
        return self.traces[way.settings, shape].peak(strategy, self.world_size)

    def need(self, peak: Peak) -> float:
        """GiB that a card must have for it."""
        return (peak.total + _overhead().bytes(peak, self.gpu_gib)) / 2**30

    def fits(self, way: Way, shape: Shape, strategy: str) -> bool:
        return self.need(self.peak(way, shape, strategy)) <= self.gpu_gib

    def configured(self) -> Way | None:
        """The way that the configuration itself goes."""
        model, params = self.config.model, self.config.train_params
        on = tuple(entry for entry in (ENCODER, MULTIVIEW, HEADS) if model[entry.split(".")[1]].gradient_checkpointing)
        only, rates = params.train_only, dict(params.submodule_lr)
        trained = () if only is None and not rates else (FROZEN,) if rates == {"encoder": 0} and only is None else None
        if only is not None and set(only) == {"dpt_feature_head", "dpt_regressor_head", "pose_head", "scale_head"}:
            trained = (ONLY_HEADS,)
        return None if trained is None else next((way for way in WAYS if set(way.overrides) == {*trained, *on}), None)

    def advised(self) -> list[tuple[Way, str]]:
        """What fits with every batch of the stage and costs least; where that leaves little, also what leaves more.

        Everything learns rather than a part; and more is computed twice rather than that weights are sent around: FSDP moves
        half as much again as DDP, which GPUs without NVLink feel.
        """
        found: list[tuple[Way, str]] = []
        for learns in dict.fromkeys(way.learns for way in WAYS):
            for strategy in self.strategies:
                for way in (way for way in WAYS if way.learns == learns):
                    need = self._most_needed(way, strategy)
                    if need <= self.gpu_gib - SPARE_GIB:
                        return [*found, (way, strategy)]
                    if need <= self.gpu_gib and not found:
                        found.append((way, strategy))
        return found

    def _most_needed(self, way: Way, strategy: str) -> float:
        """GiB for the stage's largest batch, or for the first that does not fit: those in the table are known already."""
        most = 0.0
        for shape in sorted(self.stage_shapes, key=lambda shape: (way.settings, shape) not in self.traces):
            most = max(most, self.need(self.peak(way, shape, strategy)))
            if most > self.gpu_gib:
                break
        return most

    def _limits(self, way: Way, strategy: str) -> list[str]:
        """What fits at each resolution of the table: views of a single scene, scenes of the stage's most views."""
        from mapanything.train.memory import Shape

        sizes = list(dict.fromkeys((shape.width, shape.height) for shape in self.columns))
        most = max(shape.views for shape in self.stage_shapes)

        def views(size: tuple[int, int]) -> int:
            return self._most(lambda n: Shape(n, 1, *size), way, strategy, most)

        def scenes(size: tuple[int, int]) -> int:
            return self._most(lambda n: Shape(most, n, *size), way, strategy, 1)

        # Threads wait for the pool's processes; without those everything is done here, one thing at a time.
        with ThreadPoolExecutor(1 if self.pool is None else None) as threads:
            found = list(zip(sizes, threads.map(views, sizes), threads.map(scenes, sizes), strict=True))
        return [
            f"  at {width}×{height} fit: one scene of up to {_up_to(v)} views; of {most} views, "
            + (f"up to {_up_to(s)} scene{'s' if s > 1 else ''} at a time" if s else "not one scene")
            for (width, height), v, s in found
        ]

    def _most(self, shape: Callable[[int], Shape], way: Way, strategy: str, start: int) -> int:
        """The largest n up to MOST with which a shape fits, 0 where none does; start: where a trace may be already."""
        low, high = 0, MOST + 1  # fits, does not fit
        guess, before = start, None
        while high - low > 1:
            peak = self.peak(way, shape(guess), strategy)
            point = (guess, self.need(peak))
            low, high = (guess, high) if point[1] <= self.gpu_gib else (low, guess)
            # About a straight line: the last two traces say where to look, the trace there decides.
            slope = (point[1] - before[1]) / (point[0] - before[0]) if before else peak.moving / 2**30 / guess
            aim = guess + math.floor((self.gpu_gib - point[1]) / max(slope, 1e-6))
            before, guess = point, min(max(aim + (aim == low), low + 1), high - 1)
        return low

    # What is printed

    def print_table(self) -> int:
        from mapanything.train.memory import GIB

        self.trace(WAYS, self.columns)
        first = self.traces[WAYS[0].settings, self.columns[0]]
        name = _model_name(self.given)
        print(
            f"stage {self.stage}, {name}: {first.weights / 4e9:.3f} billion weights, {first.trained / 4e9:.3f} to learn; "
            f"{self.world_size} GPU{'s' if self.world_size > 1 else ''} of {self.gpu_gib:g} GiB"
        )
        print(f"GiB needed on each, overhead included; (in brackets): does not fit. {_overhead_in_words()}\n")
        for line in self._table():
            print(line, flush=True)
        advised = self.advised()
        if not advised:
            print(f"\nnothing fits on {self.gpu_gib:g} GiB: lower train_params.max_num_of_imgs_per_gpu or dataset.num_views")
            return 1
        way, strategy = advised[0]
        worst = max(self.stage_shapes, key=lambda shape: self.need(self.peak(way, shape, strategy)))
        peak = self.peak(way, worst, strategy)
        print(f"\nadvised: {_in_words(way, strategy)}")
        print(f"its largest batch, {worst}, takes {self.need(peak):.1f} GiB at its peak, in {peak.during}:")
        groups = peak.grouped
        for group in ("weights", "gradients", "optimizer", "activations", "temporary"):
            inside = [f"{part.removeprefix('activations:')} {size / GIB:.2f}" for part, size in _inside(peak, group)]
            print(f"  {group:<12}{groups[group] / GIB:6.2f}" + (f"   {', '.join(inside)}" if inside else ""))
        print(f"  {'overhead':<12}{_overhead().bytes(peak, self.gpu_gib) / GIB:6.2f}")
        for text in self._limits(way, strategy):
            print(text)
        print(f"\n  {self._command(way, strategy)}")
        print(f"  {self._command(way, strategy, task=False)}")
        for other in advised[1:]:
            print(f"\nshould that run out of memory ({self.gpu_gib - self.need(peak):.1f} GiB to spare): {_in_words(*other)}")
            print(f"\n  {self._command(*other)}")
        return 0

    def _table(self) -> Iterator[str]:
        heads = [f"{shape.batch}×{shape.views} {shape.width}×{shape.height}" for shape in self.columns]
        configured = self.configured()
        yield f"{'learns':<21}{'checkpointing':<28}{'strategy':<10}" + "".join(f"{head:>16}" for head in heads)
        for way in WAYS:
            for strategy in self.strategies:
                cells = [self.need(self.peak(way, shape, strategy)) for shape in self.columns]
                texts = [f"{cell:.1f} " if cell <= self.gpu_gib else f"({cell:.1f})" for cell in cells]
                mark = "  <- as configured" if way is configured and strategy == self._configured_strategy() else ""
                shown = (way.learns, way.checkpointing) if strategy == self.strategies[0] else ("", "")
                yield f"{shown[0]:<21}{shown[1]:<28}{strategy:<10}" + "".join(f"{text:>16}" for text in texts) + mark

    def _configured_strategy(self) -> str:
        return str(self.config.distributed.strategy) if self.world_size > 1 else "single"

    def _command(self, way: Way, strategy: str, task: bool = True) -> str:
        """What to type: only what differs from the stage's own settings."""
        from mapanything.train.stages import compose_config

        stage = compose_config([f"stage=stage{self.stage}", *self.given])
        entries = list(self.given)
        for entry in way.settings:
            key, _, value = entry.partition("=")
            if key == "train_params" or str(stage.model[key.split(".")[1]].gradient_checkpointing).lower() != value:
                entries.append(entry)
        if self.world_size != stage.distributed.world_size:
            entries.append(f"distributed.world_size={self.world_size}")
        if strategy != "single" and strategy != stage.distributed.strategy:
            entries.append(f"distributed.strategy={strategy}")
        if task:
            return shlex.join(["./invoke", "train", "--stage", str(self.stage), *(x for e in entries for x in ("-o", e))])
        return shlex.join(["python", "-m", "mapanything.train.training", f"stage=stage{self.stage}", *entries])

    def print_json(self) -> int:
        """All cells, bytes by part."""
        self.trace(WAYS, self.columns)
        cells = []
        for way in WAYS:
            for strategy in self.strategies:
                for shape in self.columns:
                    peak = self.peak(way, shape, strategy)
                    cells.append(
                        {"learns": way.learns, "checkpointing": way.checkpointing, "strategy": strategy}
                        | {"views": shape.views, "batch": shape.batch, "resolution": [shape.width, shape.height]}
                        | {"bytes": dict(peak.parts), "overhead_bytes": _overhead().bytes(peak, self.gpu_gib)}
                        | {"during": peak.during, "fits": self.fits(way, shape, strategy)}
                    )
        advised = self.advised()
        command = self._command(*advised[0]) if advised else None
        print(
            json.dumps({"gpu_gib": self.gpu_gib, "world_size": self.world_size, "advised": command, "cells": cells}, indent=1)
        )
        return 0 if advised else 1

    def measure(self, as_json: bool) -> int:
        """The configured step of the largest batch on this machine's GPU, as a run of one process, against its plan."""
        from mapanything.train.memory import GIB, measure, trace

        strategy = self._configured_strategy()
        found = []
        for shape in self.columns:
            real = measure(self.config, shape, strategy)
            planned = trace(self.config, shape).peak(strategy, 1).total
            found.append((shape, planned, real))
        if as_json:
            rows = [{"shape": str(s), "planned": p, "tensors": m.tensors, "reserved": m.reserved, "others": m.others}
                    for s, p, m in found]  # fmt: skip
            print(json.dumps(rows, indent=1))
        else:
            print(f"{strategy}, one process, GiB".ljust(28) + "  planned  measured  off by  reserved  others")
            for shape, planned, real in found:
                print(
                    f"{shape!s:<28}{planned / GIB:>9.2f}{real.tensors / GIB:>10.2f}{planned / real.tensors - 1:>+8.1%}"
                    f"{real.reserved / GIB:>10.2f}{real.others / GIB:>8.2f}"
                )
        return int(any(abs(planned / real.tensors - 1) > TOLERANCE for _, planned, real in found))


def _start() -> None:
    import torch

    torch.set_num_threads(1)


def _trace(overrides: Sequence[str], shape: Shape) -> Trace:
    from mapanything.train.memory import trace
    from mapanything.train.stages import compose_config

    return trace(compose_config(overrides), shape)


def _overhead() -> Overhead:
    from mapanything.train.memory import Overhead

    return Overhead()


def _overhead_in_words() -> str:
    o = _overhead()
    return (
        f"Overhead: {o.driver_fraction:.1%} of the card for its driver, {o.context_gib:g} for CUDA, {o.nccl_gib:g} for NCCL, "
        f"{o.libraries_gib:g} for cuBLAS and cuDNN, {o.fragmentation:.0%} of what comes and goes for fragmentation."
    )


def _inside(peak: Peak, group: str) -> list[tuple[str, int]]:
    """What a group is made of, the largest first; nothing where it is one thing."""
    if group in ("weights", "gradients", "optimizer"):
        return []
    kept = {name: n for name, n in peak.parts.items() if name not in ("weights", "gradients", "optimizer")}
    wanted = {
        name: n for name, n in kept.items() if (name.startswith("activations:") or name == "batch") == (group == "activations")
    }
    return sorted(((name, size) for name, size in wanted.items() if size >= 2**20), key=lambda item: -item[1])


def _in_words(way: Way, strategy: str) -> str:
    return f"{way.learns} learn{'s' if way.learns == 'everything' else ''}, checkpointing: {way.checkpointing}, {strategy}"


def _up_to(n: int) -> str:
    return f"{MOST} (and more)" if n == MOST else str(n)


def _model_name(given: Sequence[str]) -> str:
    return next((entry.removeprefix("model=") for entry in reversed(given) if entry.startswith("model=")), "mapanything")


def _counts(config: DictConfig, views: list[int] | None, batch: list[int] | None) -> list[tuple[int, int]]:
    """(views, scenes) of the batches to look at. None: the stage's, without those that another one contains."""
    budget = int(config.train_params.max_num_of_imgs_per_gpu)
    dataset = config.dataset
    if views is None:
        most = min(dataset.num_views, dataset.get("coop_max_num_views") or dataset.num_views)
        least = min(dataset.get("coop_min_num_views", most), most)
        views = list(range(most, least - 1, -1))
    pairs = [(v, b) for v in views for b in (batch or [max(1, budget // v)])]
    return [p for p in pairs if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in pairs)] if batch is None else pairs


def _number(name: str, text: str, kind: type = int) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < 1e6:
        raise InputError(f"{name} {text}: give a number above 0")
    return number


def _numbers(name: str, text: str) -> list[int]:
    return [_number(name, part) for part in text.split(",")]


def _resolutions(text: str) -> list[tuple[int, int]]:
    """'448x252,518x392' or '448 252' -> [(448, 252), (518, 392)]."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*[x×\s]\s*(\d{1,5})\s*", part)
        if match is None:
            raise InputError(f"--resolution '{part[:40]}': give WIDTHxHEIGHT, for example 448x252")
        found.append((int(match[1]), int(match[2])))
    return found


if __name__ == "__main__":
    run_command(main)
