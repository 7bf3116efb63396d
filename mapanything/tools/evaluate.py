"""Checkpoints side by side on the same frames: `python -m mapanything.tools.evaluate --models NAME=PATH ...`.

The network sees the images only, unless --inputs says otherwise; ground truth is measured with, never shown. What comes out
and what each figure means: docs/metrics.md.
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mapanything.cli.data import DEPTH
from mapanything.cli.network import EVALUATE, split_models
from mapanything.errors import InputError, run_command
from mapanything.files import writing_alone
from mapanything.tools.options import code_and_provenance, describe_checkpoint, parse_device, parse_resolution, selection

MODES = {"single": ("single",), "coop": ("coop",), "both": ("single", "coop")}
NAME = re.compile(r"[\w.+-]{1,60}\Z", re.ASCII)  # of a model: a folder's name and a cell of a table
LARGER_IS_BETTER = re.compile(r"auc_|bev_iou|filtered_bev|depth_delta|depth_scaled_delta|mask_fraction|num_")


def main(argv: Sequence[str] | None = None) -> int:
    with ExitStack() as held:
        return _main(EVALUATE.parse(argv), held)


def _main(args: argparse.Namespace, held: ExitStack) -> int:
    paths = parse_models(args.models)
    low, high = _heights(args.z_range)
    if 2 * args.bev_extent / args.bev_cell > 20_000:
        raise InputError(f"--bev-cell {args.bev_cell:g}: more than 20000 cells a side; give larger cells")
    depth_root = None if args.depth_root and str(args.depth_root) == "none" else args.depth_root or DEPTH
    out = args.out or Path("visualization_outputs") / datetime.date.today().isoformat() / "evaluation"
    # What needs torch loads after the command line has been understood.
    from mapanything.evaluation.metrics import Grid, Region
    from mapanything.evaluation.report import headline_text
    from mapanything.evaluation.run import EvaluationJob, Model, evaluate, prepare_out
    from mapanything.evaluation.scene import COLUMNS, Options
    from mapanything.evaluation.scene_list import SceneChoice, list_scenes
    from mapanything.inference.predict import USES, parse_inputs
    from mapanything.inference.select import MAIN_AGENT, depth_layout

    if args.rank_by not in COLUMNS:
        raise InputError(f"--rank-by {args.rank_by}: no such column; there are {', '.join(COLUMNS)}")
    inputs = parse_inputs(args.inputs)
    if depth_root is None and ("depth" in inputs or args.reference == "depth"):
        raise InputError("--depth-root none: then the true cloud is --reference lidar, and depth is no input")
    depth_layout(depth_root)
    depth_layout(args.truth_root)
    resolution = parse_resolution(args.resolution)
    device = parse_device(args.device)
    held.enter_context(writing_alone(out, "--out"))
    prepare_out(out, args.overwrite)
    modes = MODES[args.mode]
    choice = SceneChoice(
        selection=selection(args),
        frames=args.frames,
        sample=args.sample,
        seed=args.seed,
        num_views=args.num_views,
        min_agents=args.min_agents or (2 if "coop" in modes else 1),
        main_agent=args.main_agent or MAIN_AGENT,
        every_agent=args.every_agent,
    )
    if args.frames and any((args.split, args.scenario, args.agent, args.frame)):
        raise InputError("--frames: the list says which frames; leave out --split, --scenario, --agent and --frame")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        scenes = list_scenes(args.root, choice, modes)
    for note in {str(note.message): None for note in notes}:
        print(f"note: {note}", file=sys.stderr)
    described = {name: {"checkpoint": str(path)} | describe_checkpoint(path) for name, path in paths.items()}
    code, provenance = code_and_provenance(args.root, [device])
    job = EvaluationJob(
        root=args.root,
        depth_root=depth_root,
        truth_root=args.truth_root,
        out=out,
        models=tuple(Model(name, path, described[name]) for name, path in paths.items()),
        scenes=scenes,
        inputs=tuple(name for name in USES if name in inputs),
        resolution=resolution,
        device=device,
        amp=args.amp if args.amp != "auto" else "fp32" if device == "cpu" else "bf16",
        seed=args.seed,
        options=Options(
            region=Region(low, high, args.radius),
            grid=Grid(args.bev_cell, args.bev_extent),
            chamfer_points=args.chamfer_points,
            reference=args.reference,
        ),
        worst=args.worst,
        rank_by=args.rank_by,
        larger_is_worse=not LARGER_IS_BETTER.match(args.rank_by),
        representative=args.save_representative,
        made_with=code,
        provenance=provenance,
    )

    from tqdm import tqdm

    problems: dict[str, None] = {}
    with tqdm(total=len(paths) * sum(map(len, scenes.values())), desc="evaluate", unit="scene", disable=None) as bar:

        def progress(problem: str) -> None:
            if problem:
                problems[problem] = None
            bar.update()

        summary = evaluate(job, progress)
    for problem in problems:
        print(problem)
    print(headline_text(summary))
    counts = ", ".join(f"{mode} {len(keys)}" for mode, keys in scenes.items())
    print(f"{out / 'summary.md'}: scenes {counts}, {len(problems)} failed; inputs: {', '.join(job.inputs)}")
    return 1 if problems else 0


def parse_models(words: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` words (several in one with spaces or commas between them) as paths by name, in order.

    Raises:
        InputError: no name, a name twice or one that is no plain word, a path that is not there.
    """
    models: dict[str, Path] = {}
    for word in (part for text in words for part in split_models(text)):
        name, equals, path = word.partition("=")
        if not equals or not NAME.match(name) or not path:
            raise InputError(f"--models {word}: give NAME=PATH, the name of letters, digits, dots and dashes")
        if name in models:
            raise InputError(f"--models {word}: {name} is there twice; give each model a name of its own")
        models[name] = Path(path).expanduser()
        if not models[name].exists():
            raise InputError(f"{path}: no such checkpoint (--models {name})")
    return models


def _heights(words: Sequence[str]) -> tuple[float, float]:
    """--z-range: two numbers, in one word or two."""
    try:
        low, high = (float(word) for word in " ".join(words).replace(",", " ").split())
    except ValueError as error:
        raise InputError(f"--z-range {' '.join(words)}: give two numbers, the lower and the higher, e.g. -3 1") from error
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--z-range {low:g} {high:g}: give the lower height first, then the higher")
    return low, high


if __name__ == "__main__":
    run_command(main)
