"""Draws a frame's layers in one browser, and sends no more than has changed.

A layer is a node of viser's scene tree. What is hidden stays in the browser until the frame changes, so that switching a layer
off and on sends a few bytes; nodes of the next frame take the places of the last one's, whose GPU buffers they use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.colors import linear_from_srgb
from mapanything.geometry.rigid import matrix_from_quat, quat_from_matrix
from mapanything.pictures.colors import BACKGROUND
from mapanything.pictures.render import NEAR, View
from mapanything.pictures.scenes import LIDAR_HEIGHT, Cloud
from mapanything.viewer.frames import ViewerFrame
from mapanything.viewer.layers import Layer, Look, chunk_end, near_boxes, tiles

LINE_WIDTH, PICTURE_LINE_WIDTH = 2.0, 3.0  # pixels
ORBIT = 12.0  # metres
LOOKS_DOWN = 0.2  # sine
JPEG_QUALITY = 80
BACKDROP = 400.0  # metres
BACKDROP_POINTS = 0.3
PICTURE_HEIGHT = 1080  # pixels, of a snapshot
LABEL_GAP = 0.3  # metres above a box
LABELS, IMAGES = "labels", "images"  # nodes that are no layers: a picture does not have them
UP = (0.0, -1.0, 0.0)


@dataclass(eq=False)
class _Node:
    """One layer in the browser. `sent` of a cloud's points are there."""

    group: Any
    version: tuple[object, ...] = ()
    children: dict[str, Any] = field(default_factory=dict)
    cloud: Cloud | None = None
    sent: int = 0
    fine: Any = None  # the group of all chunks but the first


class Browser:
    """One client's scene. Not for use by several threads at once."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._nodes: dict[str, _Node] = {}
        self.bytes_sent = 0  # of clouds
        self.backdrop = ""  # label of the camera whose own view is shown
        background = np.full((1, 1, 3), np.rint(np.array(BACKGROUND) * 255), np.uint8)
        client.scene.set_background_image(background, format="png")

    def show(self, layers: Mapping[str, Layer], frame: ViewerFrame, look: Look) -> None:
        """Draws these layers and hides all others; of a cloud that is not there yet its first chunk."""
        extras = self._extras(layers, frame, look)
        with self._client.atomic():
            for name in self._nodes.keys() - layers.keys() - extras.keys():
                self._hide(name, frame)
            for name, layer in layers.items():
                node = self._node(name)
                if node.version != layer.version:
                    self._draw(node, layer, look)
                node.group.visible = True
            for name, version in extras.items():
                node = self._node(name)
                if node.version != version:
                    node.version = version
                    self._replace(node, self._labels(frame, look) if name == LABELS else self._images(frame))
                node.group.visible = True
            for node in self._nodes.values():
                if node.cloud is not None:
                    for child in node.children.values():
                        child.point_size = self._point_size(look)

    def refine(self, look: Look) -> bool:
        """Sends the next chunk of a visible cloud; False when all is there."""
        for node in self._nodes.values():
            if node.cloud is not None and node.group.visible and node.sent < len(node.cloud.points):
                with self._client.atomic():
                    node.children |= self._chunk(node, look)
                return True
        return False

    def show_fine(self, visible: bool) -> None:
        """Hides or shows all but the first chunk of each cloud: a view that moves stays fluid on any graphics card."""
        with self._client.atomic():
            for node in self._nodes.values():
                if node.fine is not None:
                    node.fine.visible = visible

    def clear(self) -> None:
        for name in list(self._nodes):
            self._nodes.pop(name).group.remove()

    def points(self) -> tuple[int, int]:
        """Numbers of points of the visible clouds: in the browser, and in all."""
        nodes = [node for node in self._nodes.values() if node.cloud is not None and node.group.visible]
        return sum(node.sent for node in nodes), sum(len(node.cloud.points) for node in nodes if node.cloud is not None)

    def _node(self, name: str) -> _Node:
        if name not in self._nodes:
            self._nodes[name] = _Node(self._client.scene.add_frame(f"/{name}", show_axes=False))
        return self._nodes[name]

    def _hide(self, name: str, frame: ViewerFrame) -> None:
        """Hides a layer; of another frame it is not shown again, and goes."""
        node = self._nodes[name]
        if node.version and node.version[0] == str(frame.key):
            node.group.visible = False
        else:
            self._nodes.pop(name).group.remove()

    def _draw(self, node: _Node, layer: Layer, look: Look) -> None:
        item = layer.make()
        node.version, node.sent = layer.version, 0
        node.cloud = None
        if isinstance(item, Cloud):
            node.cloud = item
            return self._replace(node, self._chunk(node, look))
        points, edges, colors = item.lines()
        known = np.isfinite(points[edges]).all(axis=(1, 2))  # a path has gaps
        # viser takes the colours of lines for linear light, and would draw them too pale.
        edges, colors = edges[known], np.rint(255 * linear_from_srgb(colors[known] / 255)).astype(np.uint8)
        handle = self._client.scene.add_line_segments(
            f"{node.group.name}/lines",
            points[edges].astype(np.float32).reshape(-1, 2, 3),
            np.repeat(colors[:, None], 2, axis=1).reshape(-1, 2, 3),
            thickness=LINE_WIDTH,
            thickness_units="screen",
        )
        self._replace(node, {handle.name: handle})

    def _chunk(self, node: _Node, look: Look) -> dict[str, Any]:
        """The next points of a cloud, one child a tile."""
        assert node.cloud is not None
        begin, node.sent = node.sent, chunk_end(node.sent, len(node.cloud.points))
        colors = np.broadcast_to(node.cloud.colors, node.cloud.points.shape)[begin : node.sent]
        children, parent = {}, node.group.name
        if begin:
            parent = f"{parent}/fine"
            if node.fine is None:
                node.fine = self._client.scene.add_frame(parent, show_axes=False)
        for tile in tiles(node.cloud.points[begin : node.sent], colors):
            handle = self._client.scene.add_point_cloud(
                f"{parent}/{begin}/{tile.number}",
                tile.points,
                tile.colors,
                point_size=self._point_size(look),
                point_shape="square",
                point_shading="flat",
                precision="float16" if tile.points.dtype == np.float16 else "float32",
                position=tile.centre,
            )
            children[handle.name] = handle
            self.bytes_sent += tile.points.nbytes + tile.colors.nbytes
        return children

    def _labels(self, frame: ViewerFrame, look: Look) -> dict[str, Any]:
        """Each box's name above it."""
        boxes, handles = near_boxes(frame.scene.boxes, look.max_range), {}
        for label, corners in zip(boxes.labels, boxes.corners(), strict=True):
            x, _, z = corners.mean(axis=0)
            above = (x, corners[:, 1].min() - LABEL_GAP, z)
            handle = self._client.scene.add_label(f"/{LABELS}/{label}", label, position=above, anchor="bottom-center")
            handles[handle.name] = handle
        return handles

    def _images(self, frame: ViewerFrame) -> dict[str, Any]:
        """Each camera's image on the far end of its frustum; that of `backdrop` behind everything."""
        cameras, handles = frame.scene.cameras, {}
        for i, (image, corners) in enumerate(zip(frame.images, cameras.frusta()[:, 1:], strict=True)):
            if image is None:
                continue
            centre = cameras.world_from_camera[i][:3, 3]
            if cameras.labels[i] == self.backdrop:
                image = frame.full_image(i)
                corners = centre + (corners - centre) * (BACKDROP / cameras.length)
            handle = self._client.scene.add_image(
                f"/{IMAGES}/{i}",
                image,
                float(np.linalg.norm(corners[1] - corners[0])),
                float(np.linalg.norm(corners[3] - corners[0])),
                format="jpeg",
                jpeg_quality=JPEG_QUALITY,
                position=corners.mean(axis=0),
                wxyz=_wxyz(cameras.world_from_camera[i]),
            )
            handles[handle.name] = handle
        return handles

    def _extras(self, layers: Mapping[str, Layer], frame: ViewerFrame, look: Look) -> dict[str, tuple[object, ...]]:
        """Name and version of what only a browser draws beside the layers."""
        extras: dict[str, tuple[object, ...]] = {}
        if look.labels and "boxes" in layers:
            extras[LABELS] = (str(frame.key), look.max_range)
        if look.images and "cameras" in layers:
            extras[IMAGES] = (str(frame.key), self.backdrop)
        return extras

    def _point_size(self, look: Look) -> float:
        """Metres; smaller in a camera's own view, which the road right in front of it would fill."""
        return look.point_size * (BACKDROP_POINTS if self.backdrop else 1.0)

    def _replace(self, node: _Node, children: dict[str, Any]) -> None:
        for name in node.children.keys() - children.keys():
            node.children[name].remove()
        node.children = children


def _wxyz(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    return quat_from_matrix(pose)[[3, 0, 1, 2]]


def look_from(client: Any, view: View, up: tuple[float, float, float] = UP) -> None:
    """Moves a client's camera there. The vertical angle is kept; how much is seen beside it is the window's matter.

    Args:
        up: the axis that dragging turns the view around.
    """
    pose, camera = view.world_from_camera, client.camera
    with client.atomic():
        camera.near = NEAR
        camera.position = pose[:3, 3]
        camera.look_at = orbit_centre(view)
        camera.up_direction = up
        camera.fov = vertical_fov(view)


def orbit_centre(view: View) -> NDArray[np.float64]:
    """The point (3,) that dragging turns a view around: the road in its middle, or one ahead of who does not look down."""
    eye, forward = view.world_from_camera[:3, 3], view.world_from_camera[:3, 2]
    distance = (LIDAR_HEIGHT - eye[1]) / forward[1] if forward[1] > LOOKS_DOWN else ORBIT
    return eye + max(distance, ORBIT) * forward


def vertical_fov(view: View) -> float:
    """Radians."""
    return float(2 * np.arctan(view.height / 2 / view.intrinsics[1, 1]))


def view_of(client: Any, look: Look) -> View:
    """The client's own view, for a picture of its window's shape; a browser's pixels may be coarse, and change with its load.

    A browser's points have a size in metres, a picture's one in pixels: here that of a point in the middle of the view.
    """
    camera = client.camera
    width, height = round(PICTURE_HEIGHT * min(max(camera.aspect, 0.25), 4.0)), PICTURE_HEIGHT
    pose = np.eye(4)
    pose[:3, :3] = matrix_from_quat(np.asarray(camera.wxyz, np.float64)[[1, 2, 3, 0]])
    pose[:3, 3] = camera.position
    focal = height / 2 / np.tan(camera.fov / 2)
    distance = max(float(np.linalg.norm(np.subtract(camera.look_at, camera.position))), 1.0)
    # viser's points are twice their size wide (its shader divides by the half angle's tangent, not by twice that).
    point_size = float(np.clip(2 * look.point_size * focal / distance, 1.5, 8.0))
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return View(pose, k, width, height, point_size=point_size, line_width=PICTURE_LINE_WIDTH, background=BACKGROUND)
