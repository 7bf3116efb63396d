"""Checks that this machine computes what it should: network or losses against stored references.

    python -m mapanything.tools.parity FILE...

A file holds inputs and outputs of a reference run on a CPU in float32, no weights: each parameter is drawn from its own
name. For whoever works on the network, and for users with a new torch, driver or card: the largest deviation of every
tensor is printed; exit code 1 when one is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch

from mapanything.errors import InputError, run_command
from mapanything.models.parity import Deviation, check_network


def check_file(path: Path, device: torch.device) -> list[Deviation]:
    """The deviations of a file; network or losses, whichever it holds.

    Raises:
        InputError: the file cannot be read or is of neither kind.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a file of tensors ({type(error).__name__}); give a reference file") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: neither a network's nor a loss's reference file")
    if {"criteria", "scenarios"} <= set(content):
        from mapanything.train import loss_parity

        rows = loss_parity.check_file(path)
        return [
            Deviation(f"{scenario}/{criterion} {name}", far, tolerance) for scenario, criterion, name, far, tolerance in rows
        ]
    if all(isinstance(m, dict) and {"config", "keys", "cases"} <= set(m) for m in content.values()):
        return list(check_network(content, device))
    raise InputError(f"{path}: neither a network's nor a loss's reference file")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mapanything.tools.parity", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda, to check a card")
    args = parser.parse_args()
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    wrong = 0
    for path in args.files:
        rows = check_file(path, device)
        print(f"{path}: {len(rows)} tensors")
        for row in rows:
            print(f"  {'ok  ' if row.fine else 'FAR '} {row.deviation:8.1e} (of {row.tolerance:.0e})  {row.place}")
        wrong += sum(not row.fine for row in rows)
    print(f"{wrong} beyond the tolerance" if wrong else "all within their tolerances")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_command(main)
