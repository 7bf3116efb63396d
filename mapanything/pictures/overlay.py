"""LiDAR points and vehicle boxes over a camera's image, as NumPy arrays (H, W, 3) uint8.

Pixel centres lie at integer coordinates; a point at (u, v) colours the pixel (floor(u + 0.5), floor(v + 0.5)) and its
neighbours. What is nearer than `NEAR` or behind the camera is not drawn; a box that reaches there is cut at that plane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from mapanything.geometry.camera import project, resize_intrinsics
from mapanything.geometry.rigid import transform
from mapanything.geometry.types import Float
from mapanything.pictures.colors import depth_colors
from mapanything.pictures.scenes import BOX_EDGES, Boxes

Image3 = NDArray[np.uint8]
Index = NDArray[np.integer]

NEAR = 0.1  # metres
SMOOTH = 3  # lines are drawn this many times larger and averaged
MIN_LABEL_HEIGHT = 12  # pixels; the number of a smaller box would hide it


def project_points(
    points: NDArray[np.floating], camera_from_points: ArrayLike, intrinsics: ArrayLike, width: int, height: int
) -> tuple[NDArray[np.floating], NDArray[np.floating], Index]:
    """Points (N, 3) that fall into an image.

    Returns:
        uv (M, 2) pixel coordinates, z (M,) metres, index (M,) into `points`: of those in the image, from `NEAR` on.
    """
    in_camera = transform(np.asarray(camera_from_points, np.float64), np.asarray(points, np.float64))
    index = np.flatnonzero(in_camera[:, 2] >= NEAR)  # also drops NaN
    uv, z = project(in_camera[index], intrinsics)
    inside = ((uv >= -0.5) & (uv < np.array([width, height]) - 0.5)).all(axis=1)
    return uv[inside], z[inside], index[inside]


def draw_points(
    image: Image3,
    points: NDArray[np.floating],
    camera_from_points: ArrayLike,
    intrinsics: ArrayLike,
    *,
    colors: NDArray[np.uint8] | None = None,
    size: int = 3,
) -> Image3:
    """A copy of the image with points (N, 3) as squares of `size` pixels (odd), the nearest on top.

    Args:
        camera_from_points: (4, 4).
        intrinsics: (3, 3) of this image.
        colors: (N, 3) uint8; by default by depth.
    """
    height, width = image.shape[:2]
    uv, z, index = project_points(points, camera_from_points, intrinsics, width, height)
    far_first = np.argsort(-z, kind="stable")
    pixel = np.floor(uv[far_first] + 0.5).astype(np.int64)
    return stamp(image.copy(), pixel, depth_colors(z[far_first]) if colors is None else colors[index[far_first]], size)


def stamp(image: Image3, pixels: Index, colors: Image3, size: int) -> Image3:
    """Draws squares of `size` pixels (odd) around pixels (N, 2), column and row, into the image; later ones lie on top."""
    height, width = image.shape[:2]
    steps = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) - size // 2
    target = pixels[:, None] + steps  # (N, size², 2): points first, so that a later one covers an earlier one whole
    inside = ((target >= 0) & (target < [width, height])).all(axis=2)
    # NumPy keeps the last of repeated indices for plain assignment.
    image[target[inside][:, 1], target[inside][:, 0]] = np.repeat(colors, inside.sum(axis=1), axis=0)
    return image


def clip_near(starts: Float, ends: Float, near: float = NEAR) -> tuple[Float, Float, NDArray[np.bool_]]:
    """Segments (S, 3) to (S, 3) in the camera's frame, cut at z = near.

    Returns:
        Both ends (S, 3), and (S,) whether any of the segment is in front; rows where none is are as they came.
    """
    starts, ends = starts.copy(), ends.copy()
    visible = (starts[:, 2] >= near) | (ends[:, 2] >= near)
    for moved, fixed in ((starts, ends), (ends, starts)):
        cut = visible & (moved[:, 2] < near)
        share = (near - moved[cut, 2]) / (fixed[cut, 2] - moved[cut, 2])
        moved[cut] += share[:, None] * (fixed[cut] - moved[cut])
        moved[cut, 2] = near
    return starts, ends, visible


def clip_to_image(start: Float, end: Float, width: int, height: int, margin: float = 8.0) -> tuple[Float, Float] | None:
    """A line in pixels, cut to the image and a margin around it (Liang and Barsky); None where it misses both."""
    low, high = 0.0, 1.0
    step = end - start
    for axis, size in ((0, width), (1, height)):
        for position, direction in ((start[axis] + margin, step[axis]), (size + margin - start[axis], -step[axis])):
            if direction == 0:
                if position < 0:
                    return None
            elif direction > 0:
                low = max(low, -position / direction)
            else:
                high = min(high, -position / direction)
    return (start + low * step, start + high * step) if low < high else None


def box_segments(boxes: Boxes, camera_from_boxes: ArrayLike, intrinsics: ArrayLike) -> tuple[NDArray[np.floating], Index]:
    """The visible parts of all edges and heading ticks in pixels.

    Returns:
        (S, 2, 2) ends in pixel coordinates, not yet cut to the image, and (S,) the box each belongs to.
    """
    points = np.concatenate([boxes.corners(), boxes.headings()], axis=1)  # (B, 10, 3)
    points = transform(np.asarray(camera_from_boxes, np.float64), points)
    edges = np.concatenate([BOX_EDGES, [[8, 9]]])
    starts, ends = points[:, edges[:, 0]].reshape(-1, 3), points[:, edges[:, 1]].reshape(-1, 3)
    starts, ends, visible = clip_near(starts, ends)
    owner = np.repeat(np.arange(len(boxes)), len(edges))[visible]
    pixels = np.stack([project(starts[visible], intrinsics)[0], project(ends[visible], intrinsics)[0]], axis=1)
    return pixels, owner


def draw_boxes(
    image: Image3,
    boxes: Boxes,
    camera_from_boxes: ArrayLike,
    intrinsics: ArrayLike,
    *,
    line_width: float = 2.0,
    labels: bool = True,
) -> Image3:
    """A copy of the image with the boxes' edges (dark outline below) and, where there is room, their labels.

    Args:
        camera_from_boxes: (4, 4) from the boxes' world.
        line_width: pixels, of boxes up to 20 m away; farther ones have thinner lines, down to half of it.
    """
    height, width = image.shape[:2]
    segments, owner = box_segments(boxes, camera_from_boxes, intrinsics)
    cut = [clip_to_image(segment[0], segment[1], width, height) for segment in segments]
    lines = [(piece, box) for piece, box in zip(cut, owner.tolist(), strict=True) if piece is not None]
    centres = transform(np.asarray(camera_from_boxes, np.float64), boxes.world_from_box[:, :3, 3])
    depth = centres[:, 2]
    if not lines:
        return image.copy()
    # Enlarged without interpolation and averaged again, a pixel that no line touches keeps its value exactly.
    canvas = Image.fromarray(image).resize((width * SMOOTH, height * SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for box in sorted({box for _, box in lines}, key=lambda box: -depth[box]):  # the nearest last, on top
        wide = line_width * np.clip(20.0 / max(depth[box], 1.0), 0.5, 1.0)
        ends = [[tuple((point + 0.5) * SMOOTH - 0.5) for point in piece] for piece, owner in lines if owner == box]
        for fill, width in (((0, 0, 0), wide + 1.4), (tuple(boxes.colors[box].tolist()), wide)):
            for pair in ends:
                draw.line(pair, fill=fill, width=round(width * SMOOTH))
    canvas = canvas.reduce(SMOOTH)
    if labels:
        _draw_labels(canvas, boxes, lines, depth, project(centres, intrinsics)[0])
    return np.asarray(canvas)


def _draw_labels(
    canvas: Image.Image,
    boxes: Boxes,
    lines: list[tuple[tuple[Float, Float], int]],
    depth: Float,
    centres: NDArray[np.floating],
) -> None:
    """Numbers above the boxes (amid large ones), nearest first; one that would cover another is left out."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(11, round(canvas.height / 42)))
    ends: dict[int, list[Float]] = {}
    for piece, box in lines:
        ends.setdefault(box, []).extend(piece)
    taken: list[tuple[float, float, float, float]] = []
    for box in sorted(ends, key=lambda box: depth[box]):
        points = np.clip(ends[box], 0, [canvas.width - 1, canvas.height - 1])
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        if bottom - top < MIN_LABEL_HEIGHT:
            continue
        text = boxes.labels[box]
        box_width, box_height = draw.textbbox((0, 0), text, font=font, anchor="lt")[2:]
        x, y = (left + right - box_width) / 2, top - box_height - 6
        inside = (centres[box] >= 0).all() and (centres[box] < canvas.size).all()  # not so for NaN
        if bottom - top > canvas.height / 3 and inside:
            x, y = centres[box] - [box_width / 2, box_height / 2]
        x = float(np.clip(x, 4, canvas.width - box_width - 4))
        y = float(np.clip(y, 4, canvas.height - box_height - 4))
        area = (x - 3, y - 3, x + box_width + 2, y + box_height + 2)
        if any(area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3] for t in taken):
            continue
        taken.append(area)
        draw.rectangle(area, fill=(0, 0, 0))
        draw.text((x, y), text, fill=tuple(boxes.colors[box].tolist()), font=font, anchor="lt")


def enlarge(image: Image3, intrinsics: ArrayLike, width: int, height: int) -> tuple[Image3, Float]:
    """An image and its matrix at another size."""
    if image.shape[:2] == (height, width):
        return image, np.asarray(intrinsics, np.float64)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return resized, resize_intrinsics(intrinsics, width / image.shape[1], height / image.shape[0])
