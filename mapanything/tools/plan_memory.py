"""Says what fits on a card, before it is tried: batches × ways to save memory, from traced training steps (memory/).

What does not fit is said, too, and by how much.

Exit code: 0 something fits, 1 nothing does, 2 bad input. With --measure: 0 when the plan is within 10 % of the GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mapanything.cli.network import PLAN_MEMORY
from mapanything.errors import InputError, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mapanything.memory.peak import Peak
    from mapanything.memory.search import Search, Way

RESOLUTIONS = ((448, 252), (518, 392))
TOLERANCE = 0.1  # of a measured step


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = PLAN_MEMORY.parse(arguments)
    search = read_search(args)
    if args.measure:
        return print_measured(search, args.json)
    with search.tracing(args.jobs):
        return print_json(search) if args.json else print_table(search)


def read_search(args: argparse.Namespace) -> Search:
    """Reads what is asked from the options.

    Raises:
        InputError: an option that makes no sense.
    """
    from mapanything.memory.peak import Shape
    from mapanything.memory.search import Search
    from mapanything.train.stages import compose_config

    given = tuple(([f"model={args.model}"] if args.model else []) + args.o)
    config = compose_config([f"stage=stage{args.stage}", *given])
    world_size = _number("--world-size", args.world_size) if args.world_size else int(config.distributed.world_size)
    gpu_gib = _number("--gpu-gb", args.gpu_gb, float)
    wanted = _resolutions(args.resolution) if args.resolution else [tuple(config.dataset.resolution), *RESOLUTIONS]
    resolutions = list(dict.fromkeys(wanted))
    views, batch = (_numbers(f"--{name}", getattr(args, name)) if getattr(args, name) else None for name in ("views", "batch"))
    counts = _counts(config, views, batch)
    here = [Shape(v, b, *resolutions[0]) for v, b in counts]
    # Of two with as many images the one with more views stands for both in the table; what is advised is tried on all.
    columns = {shape.images: shape for shape in reversed(here)}
    asked = bool(args.resolution or args.views or args.batch)
    others = [Shape(v, b, *size) for size in resolutions[1:] for v, b in (counts if asked else counts[:1])]
    return Search(int(args.stage), gpu_gib, world_size, given, config, [*reversed(columns.values()), *others], here)


def print_table(search: Search) -> int:
    """Prints the table, what is advised and what it takes, and what to type; returns the exit code."""
    from mapanything.memory.peak import GIB
    from mapanything.memory.search import OVERHEAD, WAYS

    search.trace(WAYS, search.columns)
    first = search.traces[WAYS[0].settings, search.columns[0]]
    print(
        f"stage {search.stage}, {_model_name(search.given)}: {first.weights / 4e9:.3f} billion weights, "
        f"{first.trained / 4e9:.3f} to learn; {search.world_size} GPU{'s' if search.world_size > 1 else ''} "
        f"of {search.gpu_gib:g} GiB"
    )
    print(f"GiB needed on each, overhead included; (in brackets): does not fit. {OVERHEAD}\n")
    for line in _table(search):
        print(line, flush=True)
    advised = search.advised()
    if not advised:
        print(f"\nnothing fits on {search.gpu_gib:g} GiB: lower train_params.max_num_of_imgs_per_gpu or dataset.num_views")
        return 1
    way, strategy = advised[0]
    worst = max(search.stage_shapes, key=lambda shape: search.need(search.peak(way, shape, strategy)))
    peak = search.peak(way, worst, strategy)
    print(f"\nadvised: {_in_words(way, strategy)}")
    print(f"its largest batch, {worst}, takes {search.need(peak):.1f} GiB at its peak, in {peak.during}:")
    groups = peak.grouped
    for group in ("weights", "gradients", "optimizer", "activations", "temporary"):
        inside = [f"{part.removeprefix('activations:')} {size / GIB:.2f}" for part, size in _inside(peak, group)]
        print(f"  {group:<12}{groups[group] / GIB:6.2f}" + (f"   {', '.join(inside)}" if inside else ""))
    print(f"  {'overhead':<12}{OVERHEAD.bytes(peak, search.gpu_gib) / GIB:6.2f}")
    for line in _limits(search, way, strategy):
        print(line)
    print(f"\n  {task_command(search, way, strategy)}\n  {module_command(search, way, strategy)}")
    for other in advised[1:]:
        print(f"\nshould that run out of memory ({search.gpu_gib - search.need(peak):.1f} GiB to spare): {_in_words(*other)}")
        print(f"\n  {task_command(search, *other)}")
    return 0


def _table(search: Search) -> Iterator[str]:
    from mapanything.memory.search import WAYS

    heads = [f"{shape.batch}×{shape.views} {shape.width}×{shape.height}" for shape in search.columns]
    configured = search.configured()
    yield f"{'learns':<21}{'checkpointing':<28}{'strategy':<10}" + "".join(f"{head:>16}" for head in heads)
    for way in WAYS:
        for strategy in search.strategies:
            cells = [search.need(search.peak(way, shape, strategy)) for shape in search.columns]
            texts = [f"{cell:.1f} " if cell <= search.gpu_gib else f"({cell:.1f})" for cell in cells]
            mark = "  <- as configured" if way is configured and strategy == _configured_strategy(search) else ""
            shown = (way.learns, way.checkpointing) if strategy == search.strategies[0] else ("", "")
            yield f"{shown[0]:<21}{shown[1]:<28}{strategy:<10}" + "".join(f"{text:>16}" for text in texts) + mark


def _limits(search: Search, way: Way, strategy: str) -> Iterator[str]:
    from mapanything.memory.search import MOST

    for width, height, views, scenes in search.limits(way, strategy):
        up_to = f"{MOST} (and more)" if views == MOST else views
        at_a_time = f"{MOST} (and more)" if scenes == MOST else scenes
        yield (
            f"  at {width}×{height} fit: one scene of up to {up_to} views; of {search.most_views} views, "
            + (f"up to {at_a_time} scene{'s' if scenes > 1 else ''} at a time" if scenes else "not one scene")
        )


def _configured_strategy(search: Search) -> str:
    return str(search.config.distributed.strategy) if search.world_size > 1 else "single"


def task_command(search: Search, way: Way, strategy: str) -> str:
    """The task to type for a way to train."""
    options = [word for entry in search.entries(way, strategy) for word in ("-o", entry)]
    return shlex.join(["./invoke", "train", "--stage", str(search.stage), *options])


def module_command(search: Search, way: Way, strategy: str) -> str:
    """The same without Invoke."""
    entries = search.entries(way, strategy)
    return shlex.join(["python", "-m", "mapanything.train.training", f"stage=stage{search.stage}", *entries])


def print_json(search: Search) -> int:
    """Prints all cells, bytes by part; returns the exit code."""
    from mapanything.memory.search import OVERHEAD, WAYS

    search.trace(WAYS, search.columns)
    cells: list[dict[str, Any]] = []
    for way in WAYS:
        for strategy in search.strategies:
            for shape in search.columns:
                peak = search.peak(way, shape, strategy)
                cell: dict[str, Any] = {"learns": way.learns, "checkpointing": way.checkpointing, "strategy": strategy}
                cell |= {"views": shape.views, "batch": shape.batch, "resolution": [shape.width, shape.height]}
                cell |= {"bytes": dict(peak.parts), "overhead_bytes": OVERHEAD.bytes(peak, search.gpu_gib)}
                cell |= {"during": peak.during, "fits": search.fits(way, shape, strategy)}
                cells.append(cell)
    advised = search.advised()
    command = task_command(search, *advised[0]) if advised else None
    found = {"gpu_gib": search.gpu_gib, "world_size": search.world_size, "advised": command, "cells": cells}
    print(json.dumps(found, indent=1))
    return 0 if advised else 1


def print_measured(search: Search, as_json: bool) -> int:
    """Runs the configured step of the largest batch on this machine's GPU, as a run of one process, against its plan."""
    from mapanything.memory import step
    from mapanything.memory.peak import GIB

    strategy = _configured_strategy(search)
    found = []
    for shape in search.columns:
        real = step.measure_step(search.config, shape, strategy)
        found.append((shape, step.trace_step(search.config, shape).peak(strategy, 1).total, real))
    if as_json:
        rows = [
            {"shape": str(shape), "planned": planned, "tensors": m.tensors, "reserved": m.reserved, "others": m.others}
            for shape, planned, m in found
        ]
        print(json.dumps(rows, indent=1))
    else:
        print(f"{strategy}, one process, GiB".ljust(28) + "  planned  measured  off by  reserved  others")
        for shape, planned, real in found:
            print(
                f"{shape!s:<28}{planned / GIB:>9.2f}{real.tensors / GIB:>10.2f}{planned / real.tensors - 1:>+8.1%}"
                f"{real.reserved / GIB:>10.2f}{real.others / GIB:>8.2f}"
            )
    return int(any(abs(planned / real.tensors - 1) > TOLERANCE for _, planned, real in found))


def _inside(peak: Peak, group: str) -> list[tuple[str, int]]:
    """The parts of a group, the largest first; nothing where it is one thing."""
    parts = [(name, size) for name, size in peak.parts.items() if peak.group_of(name) == group != name and size >= 2**20]
    return sorted(parts, key=lambda item: -item[1])


def _in_words(way: Way, strategy: str) -> str:
    return f"{way.learns} learn{'s' if way.learns == 'everything' else ''}, checkpointing: {way.checkpointing}, {strategy}"


def _model_name(given: Sequence[str]) -> str:
    return next((entry.removeprefix("model=") for entry in reversed(given) if entry.startswith("model=")), "mapanything")


def _counts(config: DictConfig, views: list[int] | None, batch: list[int] | None) -> list[tuple[int, int]]:
    """The batches to look at, as (views, scenes). None: the stage's, without those that another one contains."""
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
