"""Makes a camera's image, depth and matrices one view of a training sample, at the size the network wants.

What changes an image changes its intrinsics here, in one place (`Framing`). A view's entries are MapAnything's, plus who
took it. Random choices come from the generator that is passed in, never from global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mapanything.errors import InputError
from mapanything.geometry import camera
from mapanything.geometry.rigid import quat_from_matrix
from mapanything.geometry.types import Float
from mapanything.opv2v.depth import is_dense

PATCH = 14
IMAGE_MEAN = (0.485, 0.456, 0.406)  # "dinov2" normalisation
IMAGE_STD = (0.229, 0.224, 0.225)


class Framed(TypedDict):
    """An image and what is known of it, of the network's size (docs/network.md §7.1)."""

    img: Tensor  # (3, H, W) float32, normalised
    data_norm_type: str
    camera_intrinsics: Tensor  # (3, 3)
    camera_pose: Tensor  # (4, 4) world from camera
    camera_pose_quats: Tensor  # (4,) xyzw
    camera_pose_trans: Tensor  # (3,) metres
    ray_directions_cam: Tensor  # (H, W, 3), unit
    depth_along_ray: Tensor  # (H, W, 1) metres, 0 where unknown
    pts3d_cam: Tensor  # (H, W, 3) metres; the camera's centre where unknown
    pts3d: Tensor  # (H, W, 3), in the world
    valid_mask: Tensor  # (H, W) bool: the depth is known
    non_ambiguous_mask: Tensor  # (H, W) bool: a surface, no sky
    mask_known: Tensor  # (H, W) bool: which of both it is is known
    is_synthetic: bool | Tensor  # rendered: neighbours are a surface, and no label is wrong
    true_shape: Tensor  # (2,) = (H, W)


class View(Framed):
    """One view of a sample, and who took it. In a batch all shapes begin with B, numbers are tensors, strings are lists."""

    is_metric_scale: bool | Tensor
    agent_id: int | Tensor  # role: 0 the main agent
    agent: Any
    camera: Any
    instance: Any
    label: Any
    dataset: Any
    idx: NotRequired[Any]


@dataclass(frozen=True, slots=True)
class Framing:
    """The way of an image (w, h) to (W, H): resized to `resized`, then cropped at `left`, `top`.

    The resize keeps the aspect up to rounding and covers the target; the crop puts the principal point as near to the
    middle as whole pixels allow.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    left: int
    top: int
    target: tuple[int, int]

    @classmethod
    def cover(cls, source: tuple[int, int], target: tuple[int, int], intrinsics: Float, enlarge: int = 0) -> Framing:
        """The framing for `target` (W, H); `enlarge` pixels more are covered and cropped away again (augmentation)."""
        (w, h), (width, height) = source, target
        scale = max((width + enlarge) / w, (height + enlarge) / h)
        resized = max(width, math.floor(w * scale + 1e-6)), max(height, math.floor(h * scale + 1e-6))
        k = camera.resize_intrinsics(intrinsics, resized[0] / w, resized[1] / h)
        left = round(k[0, 2] - (width - 1) / 2)
        top = round(k[1, 2] - (height - 1) / 2)
        return cls(
            source,
            resized,
            min(max(left, 0), resized[0] - width),
            min(max(top, 0), resized[1] - height),
            target,
        )

    @property
    def scale(self) -> tuple[float, float]:
        return self.resized[0] / self.source[0], self.resized[1] / self.source[1]

    def intrinsics(self, k: Float) -> Float:
        """The camera matrix of the framed image, from the source's."""
        return camera.crop_intrinsics(camera.resize_intrinsics(k, *self.scale), self.left, self.top)

    def image(self, image: NDArray[np.uint8]) -> Tensor:
        """(h, w, 3) uint8 -> (3, H, W) uint8; Lanczos when shrinking, bicubic when enlarging, always antialiased."""
        width, height = self.target
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        if self.resized != self.source:
            # 'lanczos' is torch's name for Pillow's filter of that name; its uint8 kernel is vectorised, six times as fast.
            mode = "lanczos" if self.scale[0] < 1 else "bicubic"
            if mode == "lanczos" and not torch_has_lanczos():
                resized = Image.fromarray(image).resize(self.resized, Image.Resampling.LANCZOS)
                pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
            else:
                pixels = F.interpolate(pixels, size=(self.resized[1], self.resized[0]), mode=mode, antialias=True)
        return pixels[0, :, self.top : self.top + height, self.left : self.left + width]

    def depth(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """(h, w) z-depth -> (H, W): the nearest source pixel; where that is unknown, the nearest known z in the footprint.

        Plain nearest neighbours would drop more than half of a sparse map's points for good.
        """
        (width, height), (sx, sy) = self.target, self.scale
        out = depth[_nearest(height, self.top, sy, self.source[1])]
        out = out.take(_nearest(width, self.left, sx, self.source[0]), axis=1)
        if sx >= 1 or sy >= 1:
            return out
        known = np.flatnonzero(depth > 0)
        v, u = np.divmod(known, self.source[0])
        # (i + 0.5) * s is the place of a source pixel's centre in the resized image, corner coordinates.
        u = np.floor((u + 0.5) * sx).astype(np.intp) - self.left
        v = np.floor((v + 0.5) * sy).astype(np.intp) - self.top
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        known, pixel = known[inside], v[inside] * width + u[inside]
        flat = out.reshape(-1)
        hole = flat[pixel] == 0
        known, pixel = known[hole], pixel[hole]
        z = depth.reshape(-1)[known]
        order = np.argsort(-z, kind="stable")  # the last write to a pixel wins: the nearest z
        flat[pixel[order]] = z[order]
        return out


@cache
def torch_has_lanczos() -> bool:
    """True if this torch resizes with Lanczos (2.13 does, 2.11 does not); asked of it, not read off its version."""
    try:
        F.interpolate(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), size=(1, 1), mode="lanczos", antialias=True)
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True


def _nearest(size: int, offset: int, scale: float, source_size: int) -> NDArray[np.intp]:
    """The source pixel that the centre of each of `size` framed pixels falls into."""
    return np.minimum(np.floor((np.arange(size) + offset + 0.5) / scale).astype(np.intp), source_size - 1)


def check_resolution(resolution: Sequence[int]) -> tuple[int, int]:
    """(width, height) as two positive multiples of the patch size."""
    if len(resolution) != 2 or any(not isinstance(n, int) or n <= 0 or n % PATCH for n in resolution):
        raise InputError(f"resolution {tuple(resolution)}: give width and height, both multiples of {PATCH}, e.g. 518 392")
    return resolution[0], resolution[1]


@lru_cache(maxsize=64)
def _unit_rays(key: tuple[float, ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rays with z = 1 and their lengths, for a camera matrix; every view of a data set has one of very few."""
    directions = torch.from_numpy(camera.rays(np.array(key).reshape(3, 3), height, width))
    norm = directions.norm(dim=-1, keepdim=True)
    return (directions / norm).float(), norm.float()


def make_view(
    image: NDArray[np.uint8],
    depth: NDArray[np.float32] | None,
    intrinsics: Float,
    world_from_camera: Float,
    target: tuple[int, int],
    augment: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    mask_reach: float | None = None,
    rendered: bool | None = None,
) -> Framed:
    """One view with the entries of docs/network.md §7.1.

    Args:
        image: (h, w, 3) uint8 RGB.
        depth: (h, w) float32 z-depth in metres, 0 = unknown; None: nothing is known.
        intrinsics: (3, 3) of the image as given, pixel centres at integer coordinates.
        world_from_camera: (4, 4), OpenCV.
        target: (W, H).
        augment: random changes, drawn from `rng`.
        mask_reach: of depth that was not rendered, pixels farther than this part of the width from any known one count as sky
            and all others as surface; None: only what the map knows counts.
        rendered: what the map does not know is sky, and what it knows is exact; None: as the map looks.
    """
    size = (image.shape[1], image.shape[0])
    if depth is not None and depth.shape != image.shape[:2]:
        raise ValueError(f"depth {depth.shape} and image {image.shape[:2]} differ in size")
    enlarge = augment.enlarge(rng) if augment is not None and rng is not None else 0
    framing = Framing.cover(size, target, intrinsics, enlarge)
    pixels = framing.image(image).float()
    if augment is not None and rng is not None:
        pixels = augment.colours(pixels, rng)
    k = framing.intrinsics(intrinsics)
    height, width = target[1], target[0]
    unit, norm = _unit_rays(tuple(k.ravel().tolist()), height, width)
    z = torch.from_numpy(framing.depth(depth)) if depth is not None else torch.zeros(height, width)
    valid = z > 0
    along_ray = z[..., None] * norm
    points = unit * along_ray
    pose = torch.from_numpy(world_from_camera).float()
    if rendered is None or depth is None:
        # Asked of the map as it is stored: made small, the lines of a LiDAR touch each other.
        rendered = depth is not None and is_dense(depth)
    surface, known = _mask_target(valid, rendered, mask_reach)
    return {
        "img": normalise(pixels),
        "data_norm_type": "dinov2",
        "camera_intrinsics": torch.from_numpy(k).float(),
        "camera_pose": pose,
        "camera_pose_quats": torch.from_numpy(quat_from_matrix(world_from_camera)).float(),
        "camera_pose_trans": pose[:3, 3].clone(),
        "ray_directions_cam": unit.clone(),
        "depth_along_ray": along_ray,
        "pts3d_cam": points,
        "pts3d": _in_world(points, pose, None if rendered else valid),
        "valid_mask": valid,
        "non_ambiguous_mask": surface,
        "mask_known": known,
        "is_synthetic": rendered,
        "true_shape": torch.tensor([height, width]),
    }


def _mask_target(valid: Tensor, rendered: bool, reach: float | None) -> tuple[Tensor, Tensor]:
    """Pixels with a surface, and pixels where that is known, (H, W) bool each.

    Where a rendered map knows no depth there is sky; where a LiDAR's knows none there is just no laser point. Nor is a beam
    that came back from nothing sky: it reaches 120 m, and looks up by 2 degrees (docs/losses.md).
    """
    if rendered:
        return valid.clone(), torch.ones_like(valid)
    if reach is None:
        return valid.clone(), valid.clone()
    pixels = math.ceil(reach * valid.shape[1])
    near = F.max_pool2d(valid[None, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[0, 0] > 0
    return near, torch.ones_like(valid)


def _in_world(points: Tensor, pose: Tensor, valid: Tensor | None) -> Tensor:
    """Camera-frame points (H, W, 3) in the world. With `valid` only those are moved; the others lie in the camera's centre."""
    flat = points.view(-1, 3)
    if valid is None:
        return torch.addmm(pose[:3, 3], flat, pose[:3, :3].T).view_as(points)
    known = valid.view(-1).nonzero()[:, 0]
    world = pose[:3, 3].expand_as(flat).contiguous()
    world[known] = torch.addmm(pose[:3, 3], flat[known], pose[:3, :3].T)
    return world.view_as(points)


def normalise(pixels: Tensor) -> Tensor:
    """(3, H, W) float32 in 0..255 -> normalised for DINOv2."""
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    return (pixels * (1 / (255 * std))).sub_(mean / std).contiguous()


@dataclass(frozen=True, slots=True)
class Augmentation:
    """MapAnything's training augmentation: colour jitter, greyscale, blur, a slightly larger resize before the crop.

    Brightness, contrast, saturation and hue are affine in RGB (hue as a rotation about the grey axis in YIQ), so one
    3x4 matrix does all four in any order.
    """

    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # of a full turn
    jitter_prob: float = 0.75
    grey_prob: float = 0.05
    blur_prob: float = 0.05
    crop_px: int = 16

    def enlarge(self, rng: np.random.Generator) -> int:
        """Pixels by which the resize overshoots the target."""
        return int(rng.integers(0, self.crop_px + 1))

    def colours(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """(3, H, W) float32 in 0..255 -> the same, changed."""
        # Every draw is made in every case: what one decides must not shift the draws behind it.
        jitter, grey, blur = rng.random(3) < (self.jitter_prob, self.grey_prob, self.blur_prob)
        strengths = np.array([self.brightness, self.contrast, self.saturation])
        factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths)
        turn = rng.uniform(-self.hue, self.hue)
        order = rng.permutation(4)
        sigma = rng.uniform(0.1, 2.0)
        if jitter:
            matrix = self._matrix(factors, turn, order, float(_luma(pixels).mean()))
            linear = torch.from_numpy(matrix[:, :3]).float()
            bias = torch.from_numpy(matrix[:, 3]).float()
            pixels = (linear @ pixels.flatten(1) + bias[:, None]).view_as(pixels).clamp_(0, 255)
        if grey:
            pixels = _luma(pixels).expand_as(pixels).contiguous()
        return _blur(pixels, sigma) if blur else pixels

    @staticmethod
    def _matrix(factors: NDArray, turn: float, order: NDArray, mean: float) -> Float:
        """The four changes as one affine map (3, 4) of RGB in 0..255; `mean` is the image's mean luma."""
        total = np.eye(4)
        to_grey = np.tile(_LUMA, (3, 1))
        for change in order:
            step = np.eye(4)
            if change == 0:
                step[:3, :3] *= factors[0]
                mean *= factors[0]
            elif change == 1:
                step[:3, :3] *= factors[1]
                step[:3, 3] = (1 - factors[1]) * mean
            elif change == 2:
                step[:3, :3] = factors[2] * np.eye(3) + (1 - factors[2]) * to_grey
            else:
                c, s = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
                rotation = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
                step[:3, :3] = np.linalg.inv(_YIQ) @ rotation @ _YIQ
            total = step @ total
        return total[:3]


_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _luma(pixels: Tensor) -> Tensor:
    return (pixels * torch.from_numpy(_LUMA).float()[:, None, None]).sum(0, keepdim=True)


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """A 5x5 Gaussian, the border reflected."""
    kernel = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 5)
    padded = F.pad(pixels[None], (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)[0]


def collate(samples: Sequence[Sequence[View]]) -> list[View]:
    """Samples (each a list of V views) -> a batch: V views whose tensors have a batch axis in front, strings in lists.

    Raises:
        ValueError: the samples differ in number of views; a batch has one.
    """
    if len({len(sample) for sample in samples}) != 1:
        raise ValueError(f"samples of one batch have {sorted({len(s) for s in samples})} views; a batch has one number")
    batches = ({key: _stack([view[key] for view in views]) for key in views[0]} for views in zip(*samples, strict=True))
    return [cast(View, batch) for batch in batches]


def _stack(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if isinstance(values[0], (bool, int, float, np.number)):
        return torch.tensor(values)
    return values
