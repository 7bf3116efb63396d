"""The content of pictures as plain NumPy: clouds, boxes, cameras, axes, paths, rings. Nothing here knows how it will be drawn.

The world of a scene is the main agent's LiDAR frame in OpenCV axes (x right, y down, z forward), metres. The same scene
goes to a PNG (render.py), to Matplotlib (plots.py) and over an image (overlay.py).

Every class that is drawn as lines has `lines()`: points (P, 3), edges (E, 2) and a colour per edge (E, 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, transform
from mapanything.geometry.types import Float
from mapanything.opv2v.frame import Frame, read_frame
from mapanything.opv2v.layout import PCD, YAML, AgentFolder, FrameKey, FramePaths
from mapanything.opv2v.pcd import read_pcd
from mapanything.pictures.colors import AXIS_COLORS, BOX_COLOR, RING_COLOR, Colors, agent_color, height_colors

Lines = tuple[Float, NDArray[np.int64], Colors]

LIDAR_HEIGHT = 1.9  # metres above the road, of OPV2V's rig: the best there is where nothing says it
CAMERA_NAMES = ("front", "right rear", "left rear", "back")
RING_STEPS = 180

# Corner i of a box lies at the signs of its bits (x: 1, y: 2, z: 4); an edge joins corners that differ in one bit.
CORNER_SIGNS: Float = np.array([[1 if i >> axis & 1 else -1 for axis in range(3)] for i in range(8)], dtype=np.float64)
BOX_EDGES: NDArray[np.int64] = np.array(
    [(i, i | 1 << axis) for axis in range(3) for i in range(8) if not i >> axis & 1], dtype=np.int64
)


@dataclass(frozen=True, slots=True, eq=False)
class Cloud:
    """Points (N, 3) and their colours (N, 3) uint8, or one colour (3,)."""

    points: NDArray[np.floating]
    colors: Colors
    label: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Oriented boxes; a box's own axes are OpenCV's, so that its front faces +z.

    Attributes:
        world_from_box: (B, 4, 4) poses of the centres.
        half_size: (B, 3) half width, half height, half length.
        labels: a name per box.
        colors: (B, 3) uint8.
    """

    world_from_box: Float
    half_size: Float
    labels: tuple[str, ...]
    colors: Colors

    def __len__(self) -> int:
        return len(self.labels)

    def corners(self) -> Float:
        """The corners (B, 8, 3) in the world; order as CORNER_SIGNS."""
        return transform(self.world_from_box, CORNER_SIGNS * self.half_size[:, None])

    def headings(self) -> Float:
        """The ticks (B, 2, 3) that show where the front is, on the box's bottom from the centre outwards."""
        tick = np.zeros((len(self), 2, 3))
        tick[:, :, 1] = self.half_size[:, 1:2]
        tick[:, 1, 2] = self.half_size[:, 2] + 0.35 * self.half_size[:, 2].clip(max=3.0)
        return transform(self.world_from_box, tick)

    def lines(self) -> Lines:
        """The twelve edges and the heading tick of every box."""
        points = np.concatenate([self.corners(), self.headings()], axis=1)  # (B, 10, 3)
        return _repeated(points, np.concatenate([BOX_EDGES, [[8, 9]]]), self.colors)

    def select(self, keep: NDArray) -> Boxes:
        """The boxes of a mask (B,) or of indices, in order."""
        i = np.arange(len(self))[keep]
        return Boxes(self.world_from_box[i], self.half_size[i], tuple(np.array(self.labels, object)[i]), self.colors[i])

    def without(self, label: str) -> Boxes:
        """The others: whoever looks out of a vehicle would see its box all around."""
        return self.select(np.array([other != label for other in self.labels], dtype=bool))


@dataclass(frozen=True, slots=True, eq=False)
class Cameras:
    """Pinhole cameras, drawn as frusta.

    Attributes:
        world_from_camera: (C, 4, 4).
        intrinsics: (C, 3, 3), pixel centres at integer coordinates.
        sizes: (C, 2) width and height in pixels.
        labels: a name per camera.
        colors: (C, 3) uint8.
        length: metres from the centre to the frustum's drawn end.
    """

    world_from_camera: Float
    intrinsics: Float
    sizes: NDArray[np.int64]
    labels: tuple[str, ...]
    colors: Colors
    length: float = 2.0

    def __len__(self) -> int:
        return len(self.labels)

    def frusta(self) -> Float:
        """The frusta (C, 5, 3) in the world: the centre, then the image's corners at `length`, clockwise from upper left."""
        outer = self.sizes[:, None] * np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5  # (C, 4, 2) corners of the image
        focal = self.intrinsics[:, [0, 1], [0, 1]][:, None]
        points = np.zeros((len(self), 5, 3))
        points[:, 1:, :2] = (outer - self.intrinsics[:, None, :2, 2]) / focal
        points[:, 1:, 2] = 1.0
        return transform(self.world_from_camera, points * self.length)

    def select(self, keep: NDArray) -> Cameras:
        """The cameras of a mask (C,) or of indices, in order."""
        i = np.arange(len(self))[keep]
        parts = self.world_from_camera[i], self.intrinsics[i], self.sizes[i], tuple(np.array(self.labels, object)[i])
        return Cameras(*parts, self.colors[i], self.length)

    def painted(self, color: Colors) -> Cameras:
        """The same cameras in one colour (3,)."""
        return replace(self, colors=np.tile(color, (len(self), 1)))

    def lines(self) -> Lines:
        """Eight edges a camera."""
        edges = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
        return _repeated(self.frusta(), edges, self.colors)


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """A frame's axes: x red (right), y green (down), z blue (forward)."""

    world_from_axes: Float
    label: str
    color: Colors
    length: float = 2.0

    def lines(self) -> Lines:
        points = transform(self.world_from_axes, np.concatenate([np.zeros((1, 3)), np.eye(3) * self.length]))
        return points, np.array([[0, 1], [0, 2], [0, 3]]), AXIS_COLORS


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A vehicle's path on the road: points (F, 3) in order of time, one per frame; NaN where it was not there."""

    points: Float
    label: str
    color: Colors

    def lines(self) -> Lines:
        """An edge from each frame to the next."""
        steps = np.arange(max(len(self.points) - 1, 0))
        return self.points, np.stack([steps, steps + 1], axis=1), np.broadcast_to(self.color, (len(steps), 3))


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Circles on the road around the main agent's LiDAR, for the eye to measure by; `ground` as `ground_height` gives it."""

    radii: tuple[float, ...]
    ground: float = LIDAR_HEIGHT
    color: Colors = field(default_factory=lambda: RING_COLOR)

    def lines(self) -> Lines:
        turn = np.linspace(0.0, 2 * np.pi, RING_STEPS, endpoint=False)
        circle = np.stack([np.sin(turn), np.zeros_like(turn), np.cos(turn)], axis=1)
        points = np.reshape([circle * radius for radius in self.radii], (-1, RING_STEPS, 3))
        points[..., 1] = self.ground
        step = np.arange(RING_STEPS)
        edges = np.stack([step, (step + 1) % RING_STEPS], axis=1)
        return _repeated(points, edges, np.broadcast_to(self.color, (len(self.radii), 3)))


def _repeated(points: Float, edges: NDArray[np.int64], colors: Colors) -> Lines:
    """The lines of N shapes with points (N, P, 3), which the same edges (E, 2) join, in colours (N, 3)."""
    count, size = points.shape[:2]
    every = (edges[None] + size * np.arange(count)[:, None, None]).reshape(-1, 2)
    return points.reshape(-1, 3), every, np.repeat(colors, len(edges), axis=0)


Item = Cloud | Boxes | Cameras | Axes | Trajectory | Rings


@dataclass(frozen=True, slots=True, eq=False)
class AgentFrame:
    """One agent at the scene's timestamp: its files and its parsed YAML. `has_cloud`: a PCD lies beside it."""

    key: FrameKey
    paths: FramePaths
    frame: Frame
    has_cloud: bool

    def lidar_points(self) -> NDArray[np.float32]:
        """Reads the cloud (N, 3) in this agent's LiDAR frame, OpenCV axes; rows with NaN or infinity are left out."""
        points = carla.cv_points(read_pcd(self.paths.pcd).points)
        return points[np.isfinite(points).all(axis=1)]

    def check_images(self) -> None:
        """Makes sure that all images are there. Raises InputError: a camera's entry or image is missing."""
        if len(self.frame.cameras) < len(CAMERA_NAMES):
            raise InputError(f"{self.paths.yaml}: has {len(self.frame.cameras)} cameras of {len(CAMERA_NAMES)}")
        missing = [path for k in range(len(CAMERA_NAMES)) if not (path := self.paths.image(k)).exists()]
        if missing:
            also = f" and {len(missing) - 1} more of this frame" if len(missing) > 1 else ""
            raise InputError(f"{missing[0]}: image is missing{also}; restore it or choose another frame")


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One timestamp. The main agent is the first of `agents`; `clouds`, `axes` and `paths`, if any, are one per agent."""

    agents: tuple[AgentFrame, ...]
    clouds: tuple[Cloud, ...]
    boxes: Boxes
    cameras: Cameras
    axes: tuple[Axes, ...]
    paths: tuple[Trajectory, ...] = ()

    @property
    def main(self) -> AgentFrame:
        return self.agents[0]

    @property
    def ground(self) -> float:
        """The y (down) of the road below the main agent."""
        return ground_height(self.main.frame)

    def items(self) -> Iterator[Item]:
        """Everything that can be drawn."""
        yield from (*self.clouds, self.boxes, self.cameras, *self.axes, *self.paths)


def title_of(key: FrameKey) -> str:
    """An agent-frame's name for a picture's title."""
    return f"{key.split} / {key.scenario} / agent {key.agent} / frame {key.frame}"


def read_timestamp(folders: Sequence[AgentFolder], main: str, frame: str) -> tuple[AgentFrame, ...]:
    """The agents among `folders` (of one scenario) that have this frame's YAML, the main agent first.

    Raises:
        InputError: the main agent lacks the frame, or a YAML is broken.
    """
    present = [folder for folder in folders if folder.frames.get(frame, 0) & YAML]
    present.sort(key=lambda folder: folder.agent != main)
    if not present or present[0].agent != main:
        frames = {folder.agent: folder.frames for folder in folders}.get(main, {})
        names = [name for name, has in frames.items() if has & YAML]
        there = f"it has {len(names)}, from {names[0]} to {names[-1]}" if names else "it has none with a YAML file"
        where = "/".join([folders[0].split, folders[0].scenario, main]) if folders else main
        raise InputError(f"{where}: no frame '{frame}'; {there}")
    agents = []
    for folder in present:
        key = folder.key(frame)
        paths = FramePaths(folder.path.parents[2], key)
        agents.append(AgentFrame(key, paths, read_frame(paths.yaml), bool(folder.frames[frame] & PCD)))
    return tuple(agents)


def build_scene(agents: Sequence[AgentFrame], *, max_range: float = np.inf, camera_length: float = 2.0) -> Scene:
    """The scene of one timestamp; an agent without a cloud file contributes an empty one.

    Args:
        agents: the main agent first; its LiDAR frame becomes the world.
        max_range: metres; points and boxes farther right, left, ahead or behind the main agent's LiDAR are left out.
        camera_length: metres of the frusta.
    """
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    ground = ground_height(agents[0].frame)
    clouds = []
    for agent in agents:
        points = np.zeros((0, 3), np.float32)
        if agent.has_cloud:
            matrix = (lidar_from_world @ agent.frame.world_from_lidar).astype(np.float32)
            points = transform(matrix, agent.lidar_points())
            points = points[in_range(points, max_range)]
        clouds.append(Cloud(points, height_colors(points, ground), agent.key.agent))
    boxes = vehicle_boxes(agents)
    return Scene(
        agents=tuple(agents),
        clouds=tuple(clouds),
        boxes=boxes.select(in_range(boxes.world_from_box[:, :3, 3], max_range)),
        cameras=cameras_of(agents, camera_length),
        axes=tuple(
            Axes(lidar_from_world @ world_from_vehicle(agent.frame), agent.key.agent, agent_color(role))
            for role, agent in enumerate(agents)
        ),
    )


def in_range(points: NDArray[np.floating], max_range: float) -> NDArray[np.bool_]:
    """Tells which (N,) of the points (N, 3) lie within `max_range` metres to the right, left, ahead and behind."""
    return np.asarray((np.abs(points[:, [0, 2]]) <= max_range).all(axis=1))


def vehicle_boxes(agents: Sequence[AgentFrame]) -> Boxes:
    """All vehicles that any of the agents lists, once each, in the first agent's LiDAR frame.

    An agent never lists itself; its box is there when another agent's LiDAR hit it, and has its agent's colour. Agents
    are synchronous and list the same vehicle with the same numbers to the last bit, so the first listing is taken.
    """
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    roles = {agent.key.agent: i for i, agent in enumerate(agents)}
    vehicles = {}
    for agent in agents:
        for vehicle in agent.frame.vehicles:
            vehicles.setdefault(vehicle.id, vehicle)
    chosen = [vehicles[id] for id in sorted(vehicles)]
    labels = tuple(str(vehicle.id) for vehicle in chosen)
    colors = [agent_color(roles[name]) if name in roles else BOX_COLOR for name in labels]
    return Boxes(
        world_from_box=lidar_from_world @ np.reshape([v.world_from_box for v in chosen], (-1, 4, 4)),
        half_size=np.reshape([v.half_size for v in chosen], (-1, 3)),
        labels=labels,
        colors=np.reshape(colors, (-1, 3)).astype(np.uint8),
    )


def cameras_of(agents: Sequence[AgentFrame], length: float = 2.0) -> Cameras:
    """The cameras of all agents, in the first agent's LiDAR frame."""
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    known = [(role, agent.key.agent, camera) for role, agent in enumerate(agents) for camera in agent.frame.cameras]
    return Cameras(
        world_from_camera=lidar_from_world @ np.reshape([camera.world_from_camera for _, _, camera in known], (-1, 4, 4)),
        intrinsics=np.reshape([camera.cv_intrinsics for _, _, camera in known], (-1, 3, 3)),
        sizes=np.reshape([camera.image_size for _, _, camera in known], (-1, 2)).astype(np.int64),
        labels=tuple(f"{agent} {camera.name}" for _, agent, camera in known),
        colors=np.reshape([agent_color(role) for role, _, _ in known], (-1, 3)).astype(np.uint8),
        length=length,
    )


def no_cameras() -> Cameras:
    """No camera at all."""
    none = np.zeros((0, 4, 4))
    return Cameras(none, none[:, :3, :3], np.zeros((0, 2), np.int64), (), np.zeros((0, 3), np.uint8))


def world_from_vehicle(frame: Frame) -> Float:
    """The vehicle's own pose (4, 4) (on the road), or its LiDAR's where the file has none."""
    return frame.world_from_lidar if frame.world_from_ego is None else frame.world_from_ego


def ground_height(frame: Frame) -> float:
    """The y (down, metres) of the road below this agent, in its LiDAR frame: CARLA puts a vehicle's origin on the road."""
    if frame.world_from_ego is None:
        return LIDAR_HEIGHT
    return float((invert(frame.world_from_lidar) @ frame.world_from_ego)[1, 3])


def read_positions(folders: Sequence[AgentFolder], frames: Sequence[str]) -> dict[str, Float]:
    """Reads where each agent is at each of the frames: (F, 3) in CARLA's world, OpenCV axes; NaN where it lacks the frame.

    Raises:
        InputError: a YAML is broken.
    """
    positions = {}
    for folder in folders:
        positions[folder.agent] = np.full((len(frames), 3), np.nan)
        for i, frame in enumerate(frames):
            if folder.frames.get(frame, 0) & YAML:
                path = FramePaths(folder.path.parents[2], folder.key(frame)).yaml
                positions[folder.agent][i] = world_from_vehicle(read_frame(path))[:3, 3]
    return positions


def trajectories(agents: Sequence[AgentFrame], positions: Mapping[str, Float]) -> tuple[Trajectory, ...]:
    """The paths of the agents, in the first one's LiDAR frame; `positions` as `read_positions` gives them."""
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    return tuple(
        Trajectory(transform(lidar_from_world, positions[agent.key.agent]), agent.key.agent, agent_color(role))
        for role, agent in enumerate(agents)
    )
