"""Checkpoint + frames -> depth, masks, point clouds and poses: `python -m mapanything.tools.infer --checkpoint C`.

The network sees the images only, unless --inputs says otherwise; every output records what it saw. A run that was stopped
goes on where it stopped. What is written, in which frame: docs/inference.md.
"""

from __future__ import annotations

import datetime
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapanything.cli.data import DEPTH
from mapanything.cli.network import INFER
from mapanything.errors import InputError, run_command
from mapanything.files import check_writable, writing_alone
from mapanything.results.clouds import ENCODERS
from mapanything.tools.options import code_and_provenance, describe_checkpoint, parse_devices, parse_resolution, selection


def main(argv: Sequence[str] | None = None) -> int:
    args = INFER.parse(argv)
    if args.checkpoint is None:
        raise InputError("--checkpoint: give the network, such as experiments/<run>/checkpoint-best.pth")
    clouds = _names(args.cloud, ENCODERS, "cloud") if args.cloud != "none" else ()
    # What needs torch loads after the command line has been understood.
    from mapanything.inference.predict import USES, parse_inputs
    from mapanything.inference.select import MAIN_AGENT, RESOLUTION, depth_layout, find_scenes
    from mapanything.inference.stream import InferenceJob, infer_scenes
    from mapanything.results.record import Settings, is_done, scene_folder

    inputs = parse_inputs(args.inputs)
    mode = "coop" if args.coop else "single"
    resolution = parse_resolution(args.resolution) or RESOLUTION[mode]
    devices = parse_devices(args.device)
    amp = args.amp if args.amp != "auto" else "fp32" if set(devices) == {"cpu"} else "bf16"
    out = args.save_pred_dir or Path("visualization_outputs") / datetime.date.today().isoformat() / "predictions"
    depth_root = (args.depth_root or DEPTH) if "depth" in inputs else None
    depth_layout(depth_root)
    check_writable(out, "--save-pred-dir")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        keys = find_scenes(
            args.root,
            selection(args),
            mode,
            num_views=args.num_views,
            main_agent=args.main_agent or MAIN_AGENT,
            limit=args.limit,
        )
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    if args.main_agent and args.coop and not any(key.main_agent == args.main_agent for key in keys):
        raise InputError(f"{args.root}: agent '{args.main_agent}' is in no scene of this selection; give another --main-agent")
    code, provenance = code_and_provenance(args.root, devices)
    settings = Settings(
        mode=mode,
        inputs=tuple(name for name in USES if name in inputs),
        resolution=resolution,
        axes=args.frame_of,
        clouds=clouds,
        made_with=describe_checkpoint(args.checkpoint) | {"amp": amp} | code,
        provenance={"checkpoint": str(args.checkpoint)} | provenance,
    )
    todo = keys
    if not args.overwrite:
        todo = [key for key in keys if not is_done(scene_folder(out, key), settings.record(key))]
    _check_space(out, sum(map(settings.most_bytes, todo)))
    job = InferenceJob(args.root, depth_root, out, args.checkpoint, amp, settings)

    from tqdm import tqdm

    problems: list[str] = []
    bar = tqdm(total=len(todo), desc="infer", unit="scene", disable=None)
    with writing_alone(out, "--save-pred-dir"), bar:

        def report(key: object, problem: str) -> None:
            if problem:
                problems.append(f"{key}: {problem}")
            bar.update()

        infer_scenes(job, todo, devices, report)
    for problem in problems:
        print(problem)
    print(
        f"{out}: {len(todo) - len(problems)} scenes written, {len(keys) - len(todo)} of {len(keys)} were there already, "
        f"{len(problems)} failed; inputs: {', '.join(settings.inputs)}"
    )
    return 1 if problems else 0


def _check_space(out: Path, needed: int) -> None:
    folder = check_writable(out, "--save-pred-dir")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: these scenes can take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some, narrow with "
            "--frame or --limit, or leave out clouds with --cloud none"
        )


def _names(text: str, known: dict[str, Any], what: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"--{what} {text}: give some of {', '.join(known)} with commas, or none")
    return tuple(name for name in known if name in names)


if __name__ == "__main__":
    run_command(main)
