"""One scene as a picture: the predicted cloud over the true one, from behind and from above, and the images it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.evaluation.metrics import proper_poses, sample_rows
from mapanything.evaluation.scene import Truth, in_one_frame
from mapanything.geometry.types import Float
from mapanything.pictures.canvas import new_figure, png_bytes, text_at
from mapanything.pictures.colors import BACKGROUND, PREDICTED, TRUE, TRUE_BELOW, rgb
from mapanything.pictures.render import View, chase_view, render
from mapanything.pictures.scenes import Cameras, Cloud
from mapanything.results.reconstruction import Reconstruction

SIZE = (1600, 880)  # pixels
PANEL = (790, 560)
MOST_POINTS, MOST_IMAGES = 400_000, 8
STYLE: dict[str, Any] = {"background": BACKGROUND, "point_size": 1.5, "line_width": 2.0, "supersample": 2}
REACH = 500.0  # metres; what a diverged network puts farther away would make the rest a dot


def scene_png(predicted: Reconstruction, truth: Truth, title: str) -> bytes:
    """PNG bytes of SIZE pixels. The world is the main agent's LiDAR frame.

    Raises:
        InputError: no EGL on this machine.
    """
    placed = truth.lidar_from_camera[0] @ proper_poses(predicted.view0_from_camera)
    size = (predicted.mask.shape[2], predicted.mask.shape[1])
    items = [
        *_clouds(predicted, truth, placed),
        _cameras(placed, predicted.intrinsics, size, PREDICTED),
        _cameras(truth.lidar_from_camera, truth.intrinsics, size, TRUE),
    ]
    reach = float(np.abs(truth.lidar_from_camera[:, :3, 3]).max())
    above = View.look_at(
        (0.0, -70.0 - 2 * reach, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), width=PANEL[0], height=PANEL[1], **STYLE
    )
    figure = new_figure(*SIZE)
    for column, view in enumerate((chase_view(*PANEL, **STYLE), above)):
        image = render(items, view)
        figure.figimage(image, 5 + column * (PANEL[0] + 10), SIZE[1] - 60 - PANEL[1], origin="upper")
    text_at(figure, 0.006 * SIZE[0], 30, title, 13)
    legend = {"predicted cameras; predicted points in the images' colours": PREDICTED, "true cameras and points": TRUE}
    for line, (text, color) in enumerate(legend.items()):
        text_at(figure, (0.006 + 0.4 * line) * SIZE[0], 60 + PANEL[1] + 18, f"■ {text}", 11, rgb(color))
    for i, image in enumerate(predicted.colours[:MOST_IMAGES]):
        _thumbnail(figure, image, f"{truth.agents[i]} {truth.cameras[i]}", i, min(len(truth.cameras), MOST_IMAGES))
    return png_bytes(figure)


def _clouds(predicted: Reconstruction, truth: Truth, placed: Float) -> list[Cloud]:
    rng = np.random.default_rng(0)
    true = truth.cloud
    if true is None:
        true = in_one_frame(truth.points_cam, truth.valid, truth.lidar_from_camera)
    points = in_one_frame(predicted.points_cam, predicted.mask, placed)
    # Points and colours are drawn together, so that both stay in step.
    rows = np.concatenate([points, predicted.colours[predicted.mask].astype(np.float64)], axis=1)
    rows = sample_rows(rows, MOST_POINTS, rng)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = rows[np.linalg.norm(rows[:, :3], axis=1) < REACH]
    true = sample_rows(true[np.linalg.norm(true, axis=1) < REACH], MOST_POINTS, rng)
    return [Cloud(true, TRUE_BELOW), Cloud(rows[:, :3], rows[:, 3:].astype(np.uint8))]


def _cameras(poses: Float, intrinsics: Float, size: tuple[int, int], color: NDArray[np.uint8]) -> Cameras:
    """The cameras that can be drawn of (V, 4, 4) poses with (V, 3, 3) matrices: a network may say anything."""
    seen = np.isfinite(poses).all(axis=(1, 2)) & np.isfinite(intrinsics).all(axis=(1, 2))
    seen &= (np.abs(poses[:, :3, 3]) < REACH).all(axis=1) & (np.abs(intrinsics[:, [0, 1], [0, 1]]) > 1).all(axis=1)
    count = int(seen.sum())
    names = tuple(str(view) for view in np.flatnonzero(seen))
    return Cameras(poses[seen], intrinsics[seen], np.tile(size, (count, 1)), names, np.tile(color, (count, 1)), length=1.5)


def _thumbnail(figure: Any, image: NDArray[np.uint8], name: str, place: int, count: int) -> None:
    width = (SIZE[0] - 10) / max(count, 4)
    height = min(width * image.shape[0] / image.shape[1], SIZE[1] - 60 - PANEL[1] - 36 - 26)
    left, bottom = 5 + place * width, 6
    axes = figure.add_axes((left / SIZE[0], bottom / SIZE[1], (width - 6) / SIZE[0], height / SIZE[1]))
    axes.imshow(image)
    axes.set_axis_off()
    text_at(figure, left, SIZE[1] - (bottom + height + 10), name, 10)
