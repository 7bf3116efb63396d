"""Frames as a Rerun recording (.rrd): the layers of the browser's viewer, on the timeline `frame`.

rerun-sdk is not in the lock, because it is 500 MB and few need it. Written for its version 0.41; https://rerun.io/docs
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mapanything.errors import InputError
from mapanything.files import open_atomic
from mapanything.geometry.camera import resize_intrinsics
from mapanything.opv2v.layout import FrameKey
from mapanything.pictures.scenes import Boxes, Cameras, Cloud
from mapanything.viewer.frames import Catalog, ViewerFrame, load_frame
from mapanything.viewer.layers import Look, visible_layers

POINT_RADIUS = -1.0  # Rerun takes negative radii for pixels of its window
LINE_RADIUS = -1.0


def write_recording(
    path: Path, catalog: Catalog, start: FrameKey, frames: Sequence[str], note: Callable[[str], None], look: Look | None = None
) -> int:
    """Writes these frames of an agent, whole or not at all; returns how many there are in it.

    Args:
        start: whose split, scenario and main agent it is.
        note: gets one line for each frame that is missing or broken, and is left out, and for each problem of the others.

    Raises:
        InputError: rerun-sdk is missing, no frame can be read, or the file can't be written.
    """
    rerun = _rerun()
    with open_atomic(path) as file:
        recording = rerun.RecordingStream("mapanything-opv2v")
        recording.save(file.name)
        recording.log("world", rerun.ViewCoordinates.RDF, static=True)
        written = 0
        for frame in frames:
            try:
                loaded = load_frame(catalog, replace(start, frame=frame))
            except InputError as error:
                note(str(error))
                continue
            for problem in loaded.problems:
                note(problem)
            recording.set_time("frame", sequence=int(frame))
            recording.log("world", rerun.Clear(recursive=True))  # an agent may be gone since the last frame
            _log(rerun, recording, loaded, look or Look())
            written += 1
        recording.flush()
        recording.disconnect()
        if not written:
            raise InputError(f"{path}: none of the {len(frames)} frames can be read; nothing was written")
    return written


def _rerun() -> Any:
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise InputError(
            f"--rrd: needs rerun-sdk, which is not installed ({error}): {sys.executable} -m pip install rerun-sdk"
        ) from error


def _log(rerun: Any, recording: Any, frame: ViewerFrame, look: Look) -> None:
    if look.error:
        frame.error()
    for name, layer in visible_layers(frame, look).items():
        item, place = layer.make(), f"world/{name.replace(' ', '_')}"
        if isinstance(item, Cloud):
            colors = np.broadcast_to(item.colors, item.points.shape)
            recording.log(place, rerun.Points3D(item.points, colors=colors, radii=POINT_RADIUS))
            continue
        points, edges, colors = item.lines()
        recording.log(place, rerun.LineStrips3D(points[edges].astype(np.float32), colors=colors, radii=LINE_RADIUS))
        if isinstance(item, Boxes) and look.labels and len(item):
            above = item.corners().mean(axis=1)
            recording.log(f"{place}/names", rerun.Points3D(above, labels=list(item.labels), colors=item.colors, radii=0.0))
        if isinstance(item, Cameras) and item is frame.scene.cameras and look.images:
            _log_images(rerun, recording, place, item, frame)


def _log_images(rerun: Any, recording: Any, place: str, cameras: Cameras, frame: ViewerFrame) -> None:
    for i, image in enumerate(frame.images):
        if image is None:
            continue
        pose = cameras.world_from_camera[i]
        height, width = image.shape[:2]
        k = resize_intrinsics(cameras.intrinsics[i], *(np.array([width, height]) / cameras.sizes[i]))
        camera = f"{place}/{cameras.labels[i].replace(' ', '_')}"
        recording.log(camera, rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        pinhole = rerun.Pinhole(image_from_camera=k, resolution=[width, height], image_plane_distance=cameras.length)
        recording.log(camera, pinhole)
        recording.log(camera, rerun.Image(image).compress(jpeg_quality=80))
