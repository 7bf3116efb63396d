"""Inputs of `forward` and `infer`: checked, and brought into the form that the network takes.

Every complaint is one line that names the view and the key. What `infer` accepts beyond the network's own entries
(intrinsics, z-depth, pose matrices) is translated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mapanything.errors import InputError
from mapanything.geometry.rigid import quat_from_matrix
from mapanything.models.config import PATCH

NORM_TYPE = "dinov2"
INFER_KEYS = frozenset(
    {"img", "data_norm_type", "depth_z", "ray_directions", "intrinsics", "camera_poses", "is_metric_scale"}
    | {"true_shape", "idx", "instance", "agent_id"}
)
EPS = 1e-8


def _bad(view: int, key: str, problem: str) -> InputError:
    return InputError(f"view {view}, key {key}: {problem}")


def _shape(x: Any) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__


def stack_images(views: Sequence[Mapping[str, Any]]) -> Tensor:
    """The images of all views, (B, V, 3, H, W).

    Raises:
        InputError: no view, no image, images of different size, sides that are no multiples of 14, another normalisation.
    """
    if not isinstance(views, Sequence) or not views:
        raise InputError("no views: give a list of dictionaries, one per image")
    first = None
    for number, view in enumerate(views):
        image = view.get("img")
        if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[1] != 3:
            raise _bad(number, "img", f"{_shape(image)}; give a tensor (B, 3, H, W)")
        if not image.is_floating_point():
            raise _bad(number, "img", f"{image.dtype}; give floats, normalised as data_norm_type says")
        first = image if first is None else first
        if image.shape != first.shape:
            raise _bad(number, "img", f"{_shape(image)}, but view 0 has {_shape(first)}; all views share batch and size")
        if image.device != first.device:
            raise _bad(number, "img", f"on {image.device}, but view 0 is on {first.device}")
    assert first is not None
    if first.numel() == 0 or first.shape[-2] % PATCH or first.shape[-1] % PATCH:
        raise _bad(0, "img", f"{_shape(first)}; height and width must be multiples of {PATCH}")
    norm = views[0].get("data_norm_type")
    norm = norm[0] if isinstance(norm, (list, tuple)) and norm else norm
    if norm != NORM_TYPE:
        raise _bad(0, "data_norm_type", f"{norm!r}; the network takes images normalised for {NORM_TYPE!r}: [{NORM_TYPE!r}]")
    return torch.stack([view["img"] for view in views], 1)


def check_views(views: Sequence[Mapping[str, Any]]) -> None:
    """Refuses what `infer` cannot take (docs/network.md §6.1): unknown keys, wrong shapes, contradictions, NaN, infinity."""
    stack_images(views[:1] if isinstance(views, Sequence) else views)  # view 0 first: the others are compared with it
    batch, _, height, width = views[0]["img"].shape
    for number, view in enumerate(views):
        unknown = sorted(set(map(str, view)) - INFER_KEYS)
        if unknown:
            raise _bad(number, unknown[0], f"unknown; there are {', '.join(sorted(INFER_KEYS))}")
        if "data_norm_type" not in view:
            raise _bad(number, "data_norm_type", f"missing; give [{NORM_TYPE!r}]")
        if view.get("intrinsics") is not None and view.get("ray_directions") is not None:
            raise _bad(number, "intrinsics", "given beside ray_directions; give one of the two")
        shapes = {
            "intrinsics": [(batch, 3, 3)],
            "ray_directions": [(batch, height, width, 3)],
            "depth_z": [(batch, height, width), (batch, height, width, 1)],
        }
        for key, allowed in shapes.items():
            value = view.get(key)
            if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) not in allowed):
                raise _bad(number, key, f"{_shape(value)}; give a tensor {' or '.join(map(str, allowed))}")
        if view.get("depth_z") is not None and view.get("intrinsics") is None and view.get("ray_directions") is None:
            raise _bad(number, "depth_z", "given without intrinsics or ray_directions, so its rays are unknown")
        _check_pose(number, view.get("camera_poses"), batch)
        _check_flag(number, view.get("is_metric_scale"), batch)
        if view.get("camera_poses") is not None and views[0].get("camera_poses") is None:
            raise _bad(0, "camera_poses", f"missing, but view {number} has one; poses are taken relative to view 0's")
    stack_images(views)
    _check_numbers(views)


def _check_pose(number: int, pose: Any, batch: int) -> None:
    if pose is None:
        return
    if isinstance(pose, (tuple, list)):
        shapes = [tuple(part.shape) for part in pose if isinstance(part, Tensor)]
        fits = shapes == [(batch, 4), (batch, 3)]
    else:
        fits = isinstance(pose, Tensor) and tuple(pose.shape) == (batch, 4, 4)
    if not fits:
        wanted = f"a tensor {(batch, 4, 4)}, or quaternions {(batch, 4)} and translations {(batch, 3)} as a tuple"
        raise _bad(number, "camera_poses", f"{_shape(pose)}; give {wanted}")


def _check_flag(number: int, flag: Any, batch: int) -> None:
    if flag is None or isinstance(flag, bool):
        return
    if not isinstance(flag, Tensor) or tuple(flag.shape) not in [(), (1,), (batch,)]:
        raise _bad(number, "is_metric_scale", f"{_shape(flag)}; give True, False or a bool tensor {(batch,)}")


def _check_numbers(views: Sequence[Mapping[str, Any]]) -> None:
    """NaN and infinity anywhere, depths below 0, quaternions of length 0. One look at the device for all of them."""
    checks: list[tuple[int, str, str, Tensor]] = []
    for number, view in enumerate(views):
        for key in ("img", "intrinsics", "ray_directions", "depth_z", "camera_poses"):
            value = view.get(key)
            for part in value if isinstance(value, (tuple, list)) else [value]:
                if part is not None:
                    checks.append((number, key, "holds NaN or infinity", ~part.isfinite().all()))
        if view.get("depth_z") is not None:
            checks.append((number, "depth_z", "holds negative depths; 0 stands for unknown", (view["depth_z"] < 0).any()))
        if view.get("intrinsics") is not None:
            focal = view["intrinsics"].diagonal(dim1=1, dim2=2)[:, :2]
            checks.append((number, "intrinsics", "a focal length is not above 0", (focal <= 0).any()))
        if isinstance(view.get("camera_poses"), (tuple, list)):
            checks.append(
                (number, "camera_poses", "a quaternion of length 0", (view["camera_poses"][0].norm(dim=-1) == 0).any())
            )
    devices = {c[3].device for c in checks}
    for device in devices:
        here = [c for c in checks if c[3].device == device]
        for (number, key, problem, _), wrong in zip(here, torch.stack([c[3] for c in here]).tolist(), strict=True):
            if wrong:
                raise _bad(number, key, problem)


def rays_from_intrinsics(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Unit rays (B, H, W, 3) of cameras (B, 3, 3), pixel centres at integer coordinates, skew not considered."""
    x = torch.arange(width, device=intrinsics.device, dtype=intrinsics.dtype)
    y = torch.arange(height, device=intrinsics.device, dtype=intrinsics.dtype)
    u = (x - intrinsics[:, 0, 2:3]) / intrinsics[:, 0, 0:1]  # (B, W)
    v = (y - intrinsics[:, 1, 2:3]) / intrinsics[:, 1, 1:2]  # (B, H)
    shape = (len(intrinsics), height, width)
    rays = torch.stack([u[:, None, :].expand(shape), v[:, :, None].expand(shape), u.new_ones(()).expand(shape)], -1)
    return rays / rays.norm(dim=-1, keepdim=True)


def prepare(views: Sequence[Mapping[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """`infer`'s views -> the network's (docs/network.md §6.2), on `device`, in float32; images keep their dtype."""
    prepared = []
    for view in views:
        height, width = view["img"].shape[-2:]
        out: dict[str, Any] = {"img": view["img"].to(device), "data_norm_type": view["data_norm_type"]}
        flag = view.get("is_metric_scale")
        out["is_metric_scale"] = True if flag is None else flag
        if view.get("agent_id") is not None:
            out["agent_id"] = view["agent_id"]
        rays = None
        if view.get("intrinsics") is not None:
            rays = rays_from_intrinsics(view["intrinsics"].to(device).float(), height, width)
        elif view.get("ray_directions") is not None:
            rays = view["ray_directions"].to(device).float()
            rays = rays / (rays.norm(dim=-1, keepdim=True) + EPS)
        if rays is not None:
            out["ray_directions_cam"] = rays
        if view.get("depth_z") is not None:
            assert rays is not None
            z = view["depth_z"].to(device).float().view(-1, height, width, 1)
            along = (z * (rays / rays[..., 2:3])).norm(dim=-1, keepdim=True)
            out["depth_along_ray"] = torch.where(z == 0, 0.0, along)  # unknown stays so where a ray lies in the image plane
        pose = view.get("camera_poses")
        if isinstance(pose, (tuple, list)):
            out["camera_pose_quats"], out["camera_pose_trans"] = (part.to(device).float() for part in pose)
        elif pose is not None:
            pose = pose.to(device).float()
            out["camera_pose_quats"], out["camera_pose_trans"] = quat_from_matrix(pose), pose[:, :3, 3]
        prepared.append(out)
    return prepared
