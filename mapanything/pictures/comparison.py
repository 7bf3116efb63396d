"""A predicted cloud beside, over and against a true one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.pictures.colors import (
    ERROR_MAP,
    ERROR_MAP_START,
    ERROR_RANGE,
    ERROR_TICKS,
    PREDICTED,
    RING_TEXT,
    TRUE,
    Colors,
    error_colors,
    height_colors,
)
from mapanything.pictures.picture import HEIGHT_BAR, rings_of
from mapanything.pictures.predictions import PredictedScene, error_distances
from mapanything.pictures.render import View, render
from mapanything.pictures.scenes import LIDAR_HEIGHT, AgentFrame, Cameras, Cloud, Item, build_scene, in_range
from mapanything.pictures.sheets import RING_SIGN, Bar, Mark, Panel, ring_names, sheet
from mapanything.pictures.viewpoints import for_many_points, metres_per_pixel

ERROR_BAR = Bar("distance to the nearest true point, metres", *ERROR_RANGE, ERROR_MAP, ERROR_TICKS, True, ERROR_MAP_START)
PANEL = (934, 525)  # pixels
CLOSE = 0.5  # metres


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two clouds in one frame, the main agent's LiDAR in OpenCV axes, without points that are not finite.

    Attributes:
        prediction: in its own colours.
        truth: (M, 3).
        to_truth: (N,) metres from each predicted point to the nearest true one; to_prediction: (M,) the other way.
        predicted_cameras, true_cameras: drawn over each other; None: unknown.
        ground: y of the road.
    """

    prediction: Cloud
    truth: NDArray[np.floating]
    to_truth: NDArray[np.float64]
    to_prediction: NDArray[np.float64]
    predicted_cameras: Cameras | None = None
    true_cameras: Cameras | None = None
    ground: float = LIDAR_HEIGHT


def compare(
    prediction: Cloud,
    truth: NDArray[np.floating],
    predicted_cameras: Cameras | None = None,
    true_cameras: Cameras | None = None,
    ground: float = LIDAR_HEIGHT,
) -> Comparison:
    """Measures both ways; arguments as `Comparison`'s attributes, points that are not finite among them."""
    finite = np.isfinite(prediction.points).all(axis=1)
    colors = np.broadcast_to(prediction.colors, prediction.points.shape)
    prediction = Cloud(prediction.points[finite], colors[finite], prediction.label)
    truth = truth[np.isfinite(truth).all(axis=1)]
    return Comparison(
        prediction,
        truth,
        error_distances(prediction.points, truth),
        error_distances(truth, prediction.points),
        predicted_cameras,
        true_cameras,
        ground,
    )


def compare_with_lidar(
    predicted: PredictedScene, agents: Sequence[AgentFrame], max_range: float | None, camera_size: float
) -> Comparison:
    """A prediction against the sweeps of its own vehicles.

    Args:
        max_range: metres; points farther right, left, ahead or behind the main agent's LiDAR are left out.
        camera_size: metres of the frusta.

    Raises:
        InputError: none of them has one, or one is broken.
    """
    scene = build_scene(agents, camera_length=camera_size)
    truth = np.concatenate([cloud.points for cloud in scene.clouds])
    if not len(truth):
        raise InputError(f"{agents[0].paths.pcd}: no LiDAR point to compare with; restore the cloud")
    seen = np.array([label in predicted.cameras.labels for label in scene.cameras.labels], dtype=bool)
    prediction, truth = nearby(predicted.cloud, truth, max_range)
    cameras = (replace(predicted.cameras, length=camera_size).painted(PREDICTED), scene.cameras.select(seen).painted(TRUE))
    return compare(prediction, truth, *cameras, scene.ground)


def nearby(cloud: Cloud, truth: NDArray[np.floating], max_range: float | None) -> tuple[Cloud, NDArray[np.floating]]:
    """Both clouds without the points that are farther right, left, ahead or behind than `max_range` metres, if any."""
    if max_range is None:
        return cloud, truth
    kept = in_range(cloud.points, max_range)
    colors = np.broadcast_to(cloud.colors, cloud.points.shape)[kept]
    return Cloud(cloud.points[kept], colors, cloud.label), truth[in_range(truth, max_range)]


def draw_comparison(
    comparison: Comparison,
    title: str,
    view: View,
    max_range: float,
    *,
    from_above: bool = False,
    through_camera: bool = False,
    hidden: Collection[str] = (),
) -> Any:
    """A figure of four panels: the prediction, the truth, both, and the error.

    Args:
        from_above: the view is; then the panels have a scale bar.
        through_camera: the view is one of the cameras', which are then not drawn, nor are circles: they end on the horizon.
        hidden: `cameras`, `rings` or `names` are left out.
    """
    c = comparison
    circles = not through_camera and "rings" not in hidden
    marks = _marks(c, "the main agent's LiDAR" if c.true_cameras else "the origin", circles)
    if through_camera or "cameras" in hidden:
        c = replace(c, predicted_cameras=None, true_cameras=None)
    if through_camera:
        view = replace(view, point_size=2 * view.point_size)
    view = for_many_points(view, max(len(c.prediction.points), len(c.truth)))
    rings = rings_of(max_range, c.ground)
    around: list[Item] = [rings] if circles else []
    names = ring_names(rings) if circles and "names" not in hidden else ()
    scale = metres_per_pixel(view, c.ground) if from_above else None
    ours = [*around, c.predicted_cameras.painted(PREDICTED)] if c.predicted_cameras else around
    theirs = [*around, c.true_cameras.painted(TRUE)] if c.true_cameras else around

    def panel(title: str, image: NDArray[np.uint8]) -> Panel:
        return Panel(image, title, view, names, scale)

    def drawn(points: NDArray[np.floating], colors: Colors, items: list[Item]) -> NDArray[np.uint8]:
        return render([Cloud(points, colors), *items], view)

    p, t = c.prediction.points, c.truth
    # The lighter of both: where they meet it is nearly white, and neither hides the other.
    both = np.maximum(drawn(p, PREDICTED, ours), drawn(t, TRUE, theirs))
    rows = [
        [
            panel(f"prediction: {len(p):,} points", render([c.prediction, *ours], view)),
            panel(f"ground truth: {len(t):,} points", drawn(t, height_colors(t, c.ground), theirs)),
        ],
        [
            panel("over each other", both),
            panel("error of the prediction", drawn(p, error_colors(c.to_truth), around)),
        ],
    ]
    return sheet(title, rows, marks, (HEIGHT_BAR, ERROR_BAR))


def _marks(c: Comparison, middle: str, circles: bool) -> tuple[Mark, ...]:
    marks = [Mark("prediction only", PREDICTED), Mark("ground truth only", TRUE), Mark("both")]
    if circles:
        marks.append(Mark(f"distance from {middle}", RING_TEXT, RING_SIGN))
    for name, distances in (("predicted points to the truth", c.to_truth), ("true points to the prediction", c.to_prediction)):
        said = "no points"
        if len(distances) and np.isfinite(distances).all():
            median, most = np.quantile(distances, [0.5, 0.9])
            close = np.mean(distances <= CLOSE)
            said = f"median {median:.2f} m, 90% within {most:.2f} m, {close:.0%} within {CLOSE:g} m"
        marks.append(Mark(f"{name}: {said}", sign="→", line=True))
    return tuple(marks)
