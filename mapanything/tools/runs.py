"""Lists training runs: stage, epoch, best validation loss, and how each one is.

    python -m mapanything.tools.runs [--root experiments] [--json]

A state is what a run said last, checked against its lock: running, finished, stopped (resumes with the same command), failed
(with the reason) or killed (it ended without a word; resumes too).
"""

from __future__ import annotations

import json
from typing import Any

from mapanything.cli.network import RUNS
from mapanything.errors import run_command
from mapanything.train.runs import find_runs


def table(runs: list[dict[str, Any]]) -> list[str]:
    width = max(len("run"), *(len(run["run"]) for run in runs))
    lines = [f"{'run':<{width}}  stage      epoch        best  state     last heard of"]
    for run in runs:
        epoch = "-" if run["epoch"] is None else f"{run['epoch']:.2f}/{run['epochs'] or '?'}"
        best = "-" if run["best"] is None else f"{run['best']:.4g} ({run['best_epoch']})"
        stage, state = str(run["stage"] or "-"), str(run["state"])
        line = f"{run['run']:<{width}}  {stage:<5}  {epoch:>9}  {best:>10}  {state:<8}  {run['time'] or '-'}"
        lines.append(line + (f"  {run['reason']}" if run["reason"] else ""))
    return lines


def main() -> int:
    arguments = RUNS.parse()
    runs = find_runs(arguments.root)
    if arguments.json:
        print(json.dumps(runs, indent=1))
    elif runs:
        print("\n".join(table(runs)))
    else:
        print(f"{arguments.root}: no runs yet; `./invoke train --stage 1` starts one")
    return 0


if __name__ == "__main__":
    run_command(main)
