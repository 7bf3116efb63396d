"""The way from a sample of a data set to a prediction: the only door between ground truth and the network.

A sample holds what it is later measured with: depth, poses, points. `scene_views` builds new dictionaries with what was
asked for and nothing else, so what is not an input cannot leak into a prediction: it is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from mapanything.errors import InputError
from mapanything.geometry.rigid import invert, matrix_from_quat, quat_from_matrix
from mapanything.models.mapanything import MapAnything
from mapanything.models.postprocess import Prediction
from mapanything.results.reconstruction import Reconstruction

# What may be an input, and the entries of a sample's view that it is made of.
USES: dict[str, tuple[str, ...]] = {
    "images": ("img", "data_norm_type"),
    "intrinsics": ("camera_intrinsics",),
    "poses": ("camera_pose",),
    "depth": ("pts3d_cam", "valid_mask"),
}
IMAGES = frozenset({"images"})


def parse_inputs(names: str | Iterable[str]) -> frozenset[str]:
    """Parses `images,intrinsics`, or several such names, into a set.

    Raises:
        InputError: an unknown name, no images, or depth without the intrinsics that make points of it.
    """
    text = [names] if isinstance(names, str) else list(names)
    inputs = frozenset(name.strip() for part in text for name in part.split(",") if name.strip())
    unknown = sorted(inputs - USES.keys())
    if unknown:
        raise InputError(f"inputs: unknown '{unknown[0]}'; there are {', '.join(USES)}")
    if "images" not in inputs:
        raise InputError("inputs: the network always sees the images; name images, and what else it may see")
    if "depth" in inputs and "intrinsics" not in inputs:
        raise InputError("inputs: depth needs intrinsics, which say along which rays it lies")
    return inputs


def scene_views(
    sample: Sequence[Mapping[str, Any]], inputs: Iterable[str] = IMAGES, vehicle_id: bool = False
) -> list[dict[str, Any]]:
    """The part of a sample that the network may see, for `model.predict`; a batch of one.

    Args:
        sample: views of `OPV2VDataset[i]` or `SceneSample.views`, not collated.
        inputs: names of `USES`.
        vehicle_id: tell which views come from one vehicle; only for a model with vehicle ID.

    Returns:
        One dictionary per view: img (1, 3, H, W), data_norm_type; intrinsics (1, 3, 3), camera_poses (1, 4, 4) and depth_z
        (1, H, W), 0 unknown, as `inputs` names them; agent_id (1,) with `vehicle_id`. A view without known depth has no
        depth_z.
    """
    inputs = parse_inputs(inputs)
    views = []
    for view in sample:
        out: dict[str, Any] = {"img": view["img"][None], "data_norm_type": [view["data_norm_type"]]}
        if "intrinsics" in inputs:
            out["intrinsics"] = view["camera_intrinsics"][None]
        if "poses" in inputs:
            out["camera_poses"] = view["camera_pose"][None]
        if "depth" in inputs and bool(view["valid_mask"].any()):
            out["depth_z"] = torch.where(view["valid_mask"], view["pts3d_cam"][..., 2], 0.0)[None]
        if vehicle_id:
            out["agent_id"] = torch.tensor([int(view["agent_id"])])
        views.append(out)
    return views


def predict_scene(
    model: MapAnything, sample: Sequence[Mapping[str, Any]], inputs: Iterable[str] = IMAGES, **options: Any
) -> Prediction:
    """The model's prediction of one sample (B = 1), on the model's device, unmasked.

    Args:
        options: `MapAnything.predict`'s, such as use_amp and amp_dtype.
    """
    # How many views the dense head takes at a time must not follow the free memory: the last bits of a result follow it.
    on_cpu = next(model.parameters()).device.type == "cpu"
    options = {"minibatch_size": 1 if on_cpu else None, "memory_efficient_inference": on_cpu} | options
    return model.predict(scene_views(sample, inputs, vehicle_id=model.vehicle_id is not None), **options)


def reconstruct(prediction: Prediction, scene: int = 0) -> Reconstruction:
    """One scene of a batch of predictions, brought to the CPU; a prediction without mask counts as trusted everywhere."""
    points = prediction.pts3d_cam[scene].float()
    mask = points.isfinite().all(-1)
    if prediction.mask is not None:
        mask = mask & prediction.mask[scene, ..., 0]
    poses = prediction.camera_poses[scene].double().cpu().numpy()
    # Through float32 a rotation is one only nearly, and `invert` takes it at its word.
    poses[:, :3, :3] = matrix_from_quat(quat_from_matrix(poses))
    return Reconstruction(
        points_cam=points.cpu().numpy(),
        view0_from_camera=invert(poses[0]) @ poses,
        intrinsics=prediction.intrinsics[scene].double().cpu().numpy(),
        mask=mask.cpu().numpy(),
        conf=prediction.conf[scene].float().cpu().numpy(),
        colours=(prediction.img_no_norm[scene] * 255).round().to(torch.uint8).cpu().numpy(),
        metric_scaling_factor=float(prediction.metric_scaling_factor[scene]),
    )


def reconstruct_scene(
    model: MapAnything, sample: Sequence[Mapping[str, Any]], inputs: Iterable[str] = IMAGES, amp_dtype: str = "fp32"
) -> Reconstruction:
    """The model's prediction of one sample, on the CPU; `amp_dtype` bf16, fp16 or fp32.

    Raises:
        InputError: the views do not fit into the GPU's memory.
    """
    try:
        return reconstruct(predict_scene(model, sample, inputs, use_amp=amp_dtype != "fp32", amp_dtype=amp_dtype))
    except torch.OutOfMemoryError as error:
        height, width = sample[0]["img"].shape[-2:]
        raise InputError(
            f"{len(sample)} views of {width}x{height} do not fit into the GPU's memory; give fewer "
            "(--num-views, --agents), a smaller --resolution, or --device cpu"
        ) from error
