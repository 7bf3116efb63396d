"""The data that the viewer can show, and its frames, loaded in the background. Nothing here knows a browser.

Clouds are put into a random order once, while they are loaded: any first n points are then a fair sample of the whole, which
is the viewer's level of detail.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.errors import InputError
from mapanything.geometry.types import Float
from mapanything.opv2v.layout import AgentFolder, FrameKey, Selection, agent_order, find_splits, list_folders, scan, scan_agent
from mapanything.opv2v.png import read_image
from mapanything.pictures.predictions import PredictedScene, error_cloud, read_prediction
from mapanything.pictures.scenes import Cloud, Scene, build_scene, read_positions, read_timestamp
from mapanything.results.read import find_predictions

IMAGE_WIDTH = 400  # pixels that a camera's image is reduced to, roughly
MAX_CACHE_BYTES = 1 << 30
THREADS = 2  # loading is mostly decompression, which lets other threads run


@dataclass(eq=False)
class ViewerFrame:
    """One timestamp with everything that can be shown of it.

    Attributes:
        scene: all points, in random order.
        images: the scene's cameras' images (H, W, 3), small; None where there is none.
        prediction: in the same frame as the scene, points in random order, if one was made for this main agent and frame.
        problems: one line for each file that is missing or broken, though the frame can be shown.
    """

    key: FrameKey
    scene: Scene
    images: tuple[NDArray[np.uint8] | None, ...]
    prediction: PredictedScene | None
    problems: tuple[str, ...]
    _error: Cloud | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_error(self) -> bool:
        """True if `error` is there already, or there is nothing to wait for."""
        return self._error is not None or self.prediction is None

    def error(self) -> Cloud | None:
        """The prediction coloured by its distance to the LiDAR of all agents; slow the first time."""
        with self._lock:
            if self._error is None and self.prediction is not None:
                lidar = np.concatenate([cloud.points for cloud in self.scene.clouds])
                self._error = error_cloud(self.prediction.cloud, lidar)
            return self._error

    def full_image(self, index: int) -> NDArray[np.uint8]:
        """A camera's image as large as it is. Raises InputError."""
        paths = [agent.paths.image(camera.index) for agent in self.scene.agents for camera in agent.frame.cameras]
        return read_image(paths[index])

    @property
    def nbytes(self) -> int:
        clouds = [*self.scene.clouds, *([self.prediction.cloud, self._error] if self.prediction else [])]
        size = sum(cloud.points.nbytes + cloud.colors.nbytes for cloud in clouds if cloud is not None)
        return size + sum(image.nbytes for image in self.images if image is not None)


class Catalog:
    """The scenarios, agents and frames below an image root, and which of them have a prediction.

    Raises:
        InputError: no such root, or no such folder of predictions.
    """

    def __init__(self, root: Path, predictions: Path | None = None) -> None:
        self.root = root
        self.scenarios = tuple((split, name) for split in find_splits(root) for name in list_folders(root / split))
        if not self.scenarios:
            raise InputError(f"{root}: has no scenario; `./invoke tree` lists what is there")
        # By its last four folders, {split}/{scenario}/{main agent}/{frame}, wherever it lies.
        found = find_predictions(predictions) if predictions is not None else []
        self._predictions = {FrameKey(*folder.resolve().parts[-4:]): folder for folder in found if len(folder.parts) >= 4}
        if predictions is not None and not self._predictions:
            raise InputError(f"{predictions}: holds no prediction; give what `./invoke infer` wrote with --out")

    def agents(self, split: str, scenario: str) -> tuple[str, ...]:
        """The scenario's agents in OPV2V's order."""
        return tuple(sorted(list_folders(self.root / split / scenario), key=agent_order))

    def folders(self, split: str, scenario: str) -> list[AgentFolder]:
        return [scan_agent(self.root, split, scenario, agent) for agent in self.agents(split, scenario)]

    def frames(self, split: str, scenario: str, agent: str) -> tuple[str, ...]:
        """All timestamps of an agent, those with missing files too: they say so when they are shown."""
        return tuple(scan_agent(self.root, split, scenario, agent).frames)

    def first(self, selection: Selection | None = None) -> FrameKey:
        """The first frame of a selection; of what has a prediction, where there are predictions and nothing is selected.

        Raises:
            InputError: it is not there.
        """
        if selection is None or selection == Selection():
            for key in sorted(self._predictions):
                if (self.root / key.split / key.scenario / key.agent / f"{key.frame}.yaml").is_file():
                    return key
        for folder in scan(self.root, selection):
            for frame in folder.frames:
                return folder.key(frame)
        raise InputError(f"{self.root}: no frame; `./invoke tree` lists what is there")

    def prediction(self, key: FrameKey) -> Path | None:
        return self._predictions.get(key)

    @property
    def has_predictions(self) -> bool:
        return bool(self._predictions)


def load_frame(catalog: Catalog, key: FrameKey) -> ViewerFrame:
    """Everything of one timestamp.

    Raises:
        InputError: the frame is missing, or a YAML or cloud is broken. A bad image or prediction is only a problem.
    """
    agents = read_timestamp(catalog.folders(key.split, key.scenario), key.agent, key.frame)
    problems = [f"{agent.paths.pcd}: is missing" for agent in agents if not agent.has_cloud]
    images: list[NDArray[np.uint8] | None] = []
    for agent in agents:
        for camera in agent.frame.cameras:
            try:
                images.append(_small(read_image(agent.paths.image(camera.index))))
            except InputError as error:
                images.append(None)
                problems.append(str(error))
    scene = build_scene(agents)
    prediction = None
    folder = catalog.prediction(key)
    if folder is not None:
        try:
            prediction = read_prediction(folder)
            prediction = replace(prediction, cloud=shuffled(prediction.cloud))
        except InputError as error:
            problems.append(str(error))
    return ViewerFrame(
        key=key,
        scene=replace(scene, clouds=tuple(shuffled(cloud) for cloud in scene.clouds)),
        images=tuple(images),
        prediction=prediction,
        problems=tuple(problems),
    )


def shuffled(cloud: Cloud) -> Cloud:
    """The finite points in an order that is random, and the same each time; a colour for each of them."""
    finite = np.flatnonzero(np.isfinite(cloud.points).all(axis=1))
    order = np.random.default_rng(len(finite)).permutation(finite)
    colors = np.broadcast_to(cloud.colors, cloud.points.shape)
    return Cloud(cloud.points[order].astype(np.float32, copy=False), colors[order], cloud.label)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(1, round(image.shape[1] / IMAGE_WIDTH))
    return np.asarray(Image.fromarray(image).reduce(factor))


class Loader:
    """Loads frames in the background for all clients, and keeps the latest ones, up to `max_bytes` of them."""

    def __init__(self, catalog: Catalog, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.catalog = catalog
        self._max_bytes = max_bytes
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="viewer-load")
        self._lock = threading.Lock()
        self._frames: OrderedDict[FrameKey, Future[ViewerFrame]] = OrderedDict()

    def request(self, key: FrameKey) -> Future[ViewerFrame]:
        """The frame, maybe later. What failed is tried again by the next request: the file may be there by then."""
        with self._lock:
            future = self._frames.get(key)
            if future is None or (future.done() and (future.cancelled() or future.exception() is not None)):
                future = self._frames[key] = self._pool.submit(load_frame, self.catalog, key)
            self._frames.move_to_end(key)
            self._forget()
        return future

    def request_positions(self, split: str, scenario: str) -> Future[dict[str, Float]]:
        """The places of the scenario's agents, for their paths: reads all its YAML files, seconds."""

        def read() -> dict[str, Float]:
            folders = self.catalog.folders(split, scenario)
            frames = sorted({frame for folder in folders for frame in folder.frames})
            return read_positions(folders, frames)

        return self._pool.submit(read)

    def request_error(self, frame: ViewerFrame) -> Future[Cloud | None]:
        """The frame's `error`, maybe later."""
        return self._pool.submit(frame.error)

    def _forget(self) -> None:
        done = [(key, future) for key, future in self._frames.items() if future.done()]
        for key, future in done:
            if future.cancelled() or future.exception() is not None:
                del self._frames[key]
        sizes = {key: future.result().nbytes for key, future in done if key in self._frames}
        total = sum(sizes.values())
        for key in list(sizes)[:-1]:  # the oldest first, the newest never
            if total <= self._max_bytes:
                break
            total -= sizes[key]
            del self._frames[key]

    def cached(self) -> Sequence[FrameKey]:
        with self._lock:
            return tuple(self._frames)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
