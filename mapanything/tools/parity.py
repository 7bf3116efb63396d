"""Checks that this machine computes what it should: network or losses against stored references.

    python -m mapanything.tools.parity FILE...

A file holds inputs and outputs of a reference run on a CPU in float32, no weights: each parameter is drawn from its own
name. For whoever works on the network, and for users with a new torch, driver or card: the largest deviation of every
tensor is printed; exit code 1 when one is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mapanything.errors import InputError, run_command

TOLERANCE = 1e-4  # largest |difference| / largest |reference| of a tensor; float32 rounding is up to 3e-5
INTRINSICS_TOLERANCE = 1e-5
MASK_TOLERANCE = 1e-3  # share of the pixels of a mask that may differ


class Deviation(NamedTuple):
    """The distance of one tensor from its reference."""

    place: str
    deviation: float
    tolerance: float

    @property
    def fine(self) -> bool:
        return self.deviation <= self.tolerance  # NaN is not


def drawn_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Parameters by name, each drawn by the rule of docs/network.md §11 from a generator that its own name seeds."""
    return {key: torch.from_numpy(_drawn(key, tuple(shape))) for key, shape in shapes.items()}


def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    r = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(size=shape, dtype=np.float32)
    if key.endswith("gamma"):
        return 0.5 + 0.2 * r
    if key.endswith("weight") and "norm" in key:
        return 1 + 0.2 * r
    if key.endswith("bias"):
        return 0.1 * r
    if key.endswith(("cls_token", "scale_token")):
        return 0.5 * r
    if key.endswith("pos_embed"):
        return 0.3 * r
    r = r * np.float32(1.2 / np.sqrt(r.size / shape[0]))
    return r * np.float32(0.1) if key == "dpt_regressor_head.conv2.2.weight" else r


def deviation(name: str, place: str, ours: Tensor, reference: Tensor) -> Deviation:
    """Masks: the share of differing pixels. Others: the largest difference, relative to the largest reference."""
    ours = ours.detach().cpu()
    if ours.shape != reference.shape:
        return Deviation(f"{place} {tuple(ours.shape)} instead of {tuple(reference.shape)}", float("inf"), 0.0)
    if reference.dtype == torch.bool:
        return Deviation(place, (ours != reference).float().mean().item(), MASK_TOLERANCE)
    difference = (ours.double() - reference.double()).abs()
    size = reference.double().abs().max().clip(min=1e-30)
    return Deviation(place, (difference.max() / size).item(), INTRINSICS_TOLERANCE if name == "intrinsics" else TOLERANCE)


def check_network(models: Mapping[str, Any], device: torch.device) -> Iterator[Deviation]:
    """Runs every case of every small network in a file of the first kind of docs/network.md §11."""
    from mapanything.models.mapanything import MapAnything
    from mapanything.models.postprocess import intrinsics_from_rays
    from mapanything.models.weights.upstream import config_from_upstream

    for model_name, stored in models.items():
        config = config_from_upstream(stored["config"]["model_config"], stored["config"].get("dinov2"))
        model = MapAnything(config).to(device).eval()
        weights = drawn_weights(stored["keys"])
        if model.info_sharing.view_pos_table is not None:
            weights["info_sharing.view_pos_table"] = stored["view_pos_table"]
        missing, unexpected = model.load_state_dict(weights, strict=False)
        ours = set(dict(model.named_parameters()))
        if unexpected or ours & set(missing):
            raise InputError(f"{model_name}: the network has other parameters than the file: {[*unexpected, *missing][:3]}")
        for case_name, case in stored["cases"].items():
            place = f"{model_name}/{case_name}"
            kwargs = dict(case["infer_kwargs"])
            prediction = model.predict(case["views"], **kwargs)
            # What forward gave upstream is in the prediction too, but for the confidence that other views can replace.
            plain = model.predict(case["views"], **{**kwargs, "use_multiview_confidence": False})
            for part, views in (("forward", plain.views()), ("infer", prediction.masked_views())):
                for number, reference in enumerate(case[part]):
                    for name, tensor in reference.items():
                        if name == "intrinsics":
                            # From the reference's own rays: they are compared themselves, and with random weights some lie
                            # so near the image plane (z/|r| of 1e-6) that one rounding more turns the camera's focal length.
                            views[number][name] = intrinsics_from_rays(case["forward"][number]["ray_directions"].to(device))
                        if isinstance(tensor, Tensor):
                            yield deviation(name, f"{place} {part} view {number} {name}", views[number][name], tensor)


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
