"""Compares the network with stored references: the largest deviation of every tensor, with weights drawn from their names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mapanything.errors import InputError

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
