"""Small pictures of what a network makes of a scene: image, true and predicted depth of each view, all points from above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mapanything.datasets.views import IMAGE_MEAN, IMAGE_STD, View
from mapanything.geometry.colors import map_colors
from mapanything.models.outputs import Outputs

WIDTH = 160  # of a view, in pixels


def draw(views: Sequence[View], outputs: Outputs, sample: int = 0, max_views: int = 10) -> NDArray[np.uint8]:
    """One sample of a batch as a picture (H, W, 3): a column per view of image, true depth, predicted depth; then from above.

    Depths share one colour scale per sample, logarithmic, from the true ones; unknown depth is black.
    """
    columns = []
    true = [view["depth_along_ray"][sample, ..., 0].float() for view in views[:max_views]]
    known = torch.cat([depth[depth > 0] for depth in true])
    near, far = (known.quantile(q).item() if len(known) else default for q, default in ((0.02, 1.0), (0.98, 100.0)))
    for v, (view, depth) in enumerate(zip(views, true)):
        predicted = outputs.depth_along_ray[sample, v, ..., 0].float()
        shown = (_photo(view["img"][sample]), _colours(depth, near, far), _colours(predicted, near, far))
        columns.append(np.concatenate([_small(pixels) for pixels in shown]))
    strip = np.concatenate(columns, axis=1)
    points = torch.cat([outputs.pts3d[sample, v][view["valid_mask"][sample]] for v, view in enumerate(views)])
    truth = torch.cat([_in_view0(views, v, sample) for v in range(len(views))])
    size = min(strip.shape[0], 480)
    above = np.concatenate([_from_above(truth, size), _from_above(points.float(), size)], axis=1)
    width = max(strip.shape[1], above.shape[1])
    return np.concatenate([_pad(strip, width), _pad(above, width)])


def _photo(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(x, device=image.device)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
    return (image.float() * std + mean).clamp(0, 1) * 255


def _colours(depth: Tensor, near: float, far: float) -> Tensor:
    """(H, W) -> (3, H, W) in 0..255: red is near, blue far."""
    values = depth.detach().cpu().numpy()
    colours = map_colors(np.log(np.maximum(values, 1e-3)), np.log(near), np.log(max(far, near * 1.001)), "turbo_r")
    return torch.from_numpy(np.where(values[..., None] > 0, colours, 0)).permute(2, 0, 1).float()


def _small(pixels: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in 0..255 -> (h, WIDTH, 3)."""
    height = max(1, round(pixels.shape[1] * WIDTH / pixels.shape[2]))
    small = F.interpolate(pixels[None], size=(height, WIDTH), mode="area")[0]
    return small.permute(1, 2, 0).round().byte().cpu().numpy()


def _in_view0(views: Sequence[View], v: int, sample: int) -> Tensor:
    """The true points of a view in the frame of view 0, which is the network's world."""
    pose = torch.linalg.inv(views[0]["camera_pose"][sample].double())
    points = views[v]["pts3d"][sample][views[v]["valid_mask"][sample]].double()
    return (points @ pose[:3, :3].T + pose[:3, 3]).float()


def _from_above(points: Tensor, size: int, extent: float = 50.0) -> NDArray[np.uint8]:
    """Points (N, 3), OpenCV axes (x right, z forward), as a map of ±extent metres; view 0 in the middle, looking up."""
    x = ((points[:, 0] / extent + 1) * size / 2).long()
    y = ((1 - points[:, 2] / extent) * size / 2).long()
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    count = torch.bincount(y[inside] * size + x[inside], minlength=size * size).view(size, size).float()
    grey = (count.log1p() / count.max().log1p().clamp(min=1e-6) * 255).byte().cpu().numpy()
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[:, -1] = 64  # a line between two of them
    return picture


def _pad(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)))
