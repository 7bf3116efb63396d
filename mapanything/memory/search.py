"""Searches what fits on a card: batches × ways to save memory, each a traced training step of its own; none is interpolated.

The limits are looked for: a line through two traced points says where to look, the traces there decide.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch
from omegaconf import DictConfig

from mapanything.memory.peak import GIB, Overhead, Peak, Shape, Trace
from mapanything.memory.step import trace_step
from mapanything.processes import holding_ctrl_c
from mapanything.train.stages import compose_config

SPARE_GIB = 1.0  # with less left over, a plan is no promise
MOST = 64  # views or scenes; nobody asks for more
OVERHEAD = Overhead()

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


def trace_stage(overrides: Sequence[str], shape: Shape) -> Trace:
    """Traces a step of the configuration that these overrides make."""
    return trace_step(compose_config(overrides), shape)


@dataclass
class Search:
    """A question, and the traces made for it so far.

    Attributes:
        given: the user's overrides of the stage's configuration, which `config` has.
        columns: the batches of the table. stage_shapes: the stage's batches; none of them may be too large.
    """

    stage: int
    gpu_gib: float
    world_size: int
    given: tuple[str, ...]
    config: DictConfig
    columns: list[Shape]
    stage_shapes: list[Shape]
    tracer: Callable[[Sequence[str], Shape], Trace] = trace_stage
    traces: dict[tuple[tuple[str, ...], Shape], Trace] = field(default_factory=dict)
    pool: ProcessPoolExecutor | None = None

    @contextmanager
    def tracing(self, jobs: int) -> Iterator[None]:
        """Provides processes to trace in, while this lasts; with one job this process does it."""
        if jobs == 1:
            yield
            return
        # Spawned, not forked: torch's threads and locks do not survive a fork.
        with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as self.pool:
            yield

    def trace(self, ways: Sequence[Way], shapes: Sequence[Shape]) -> None:
        """Traces what has not been traced yet, several at a time."""
        keys = [(way.settings, shape) for way in ways for shape in shapes if (way.settings, shape) not in self.traces]
        calls = [((f"stage=stage{self.stage}", *self.given, *settings), shape) for settings, shape in keys]
        apply = map if self.pool is None else self.pool.map
        with holding_ctrl_c():
            results = apply(self.tracer, *zip(*calls)) if calls else ()
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
        """The most that a step of a way takes at once."""
        self.trace([way], [shape])
        return self.traces[way.settings, shape].peak(strategy, self.world_size)

    @property
    def most_views(self) -> int:
        """The most views of a scene of the stage."""
        return max(shape.views for shape in self.stage_shapes)

    def need(self, peak: Peak) -> float:
        """GiB that a card must have for it."""
        return (peak.total + OVERHEAD.bytes(peak, self.gpu_gib)) / GIB

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
        """Ways that fit with every batch of the stage and cost least; where that leaves little, also what leaves more.

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

    def limits(self, way: Way, strategy: str) -> list[tuple[int, int, int, int]]:
        """The most that fits at each resolution: (width, height, views of a single scene, scenes of the stage's most)."""
        sizes = list(dict.fromkeys((shape.width, shape.height) for shape in self.columns))
        most = self.most_views

        def views(size: tuple[int, int]) -> int:
            return self.largest(lambda n: Shape(n, 1, *size), way, strategy, most)

        def scenes(size: tuple[int, int]) -> int:
            return self.largest(lambda n: Shape(most, n, *size), way, strategy, 1)

        # Threads wait for the pool's processes; without those everything is done here, one thing at a time.
        with ThreadPoolExecutor(1 if self.pool is None else None) as threads:
            return [
                (*size, v, s) for size, v, s in zip(sizes, threads.map(views, sizes), threads.map(scenes, sizes), strict=True)
            ]

    def largest(self, shape: Callable[[int], Shape], way: Way, strategy: str, start: int) -> int:
        """The largest n up to MOST with which a shape fits, 0 where none does; start: where a trace may be already."""
        low, high = 0, MOST + 1  # fits, does not fit
        guess, before = start, None
        while high - low > 1:
            peak = self.peak(way, shape(guess), strategy)
            point = (guess, self.need(peak))
            low, high = (guess, high) if point[1] <= self.gpu_gib else (low, guess)
            # About a straight line: the last two traces say where to look, the trace there decides.
            slope = (point[1] - before[1]) / (point[0] - before[0]) if before else peak.moving / GIB / guess
            aim = guess + math.floor((self.gpu_gib - point[1]) / max(slope, 1e-6))
            before, guess = point, min(max(aim + (aim == low), low + 1), high - 1)
        return low

    def entries(self, way: Way, strategy: str) -> list[str]:
        """The overrides that make the stage go this way: only what differs from its own settings."""
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
        return entries
