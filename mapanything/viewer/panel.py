"""The viewer's panel: viser's widgets, and what each of them asks its session to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from mapanything.geometry.colors import map_colors
from mapanything.opv2v.layout import FrameKey
from mapanything.pictures.colors import ERROR_RANGE, ERROR_TICKS, HEIGHT_RANGE, Colors, agent_color, error_colors
from mapanything.viewer.frames import Catalog, ViewerFrame
from mapanything.viewer.layers import ALL_RANGE, LIDAR_COLORS, PREDICTION_COLORS, Look

FPS = 5.0
VIEWS = {"Chase": "chase", "Top": "top"}
CHOOSE = "choose ..."
LAYERS = {  # field of Look: label, hint
    "lidar": ("LiDAR", "The clouds of all agents; single ones can be hidden below"),
    "prediction": ("Prediction", "What `./invoke infer` wrote for this frame"),
    "error": ("Error", "The predicted points coloured by their distance to the nearest LiDAR point"),
    "boxes": ("Boxes", "All vehicles that any agent's LiDAR hit; agents have their colours"),
    "labels": ("Box names", "The vehicles' ids"),
    "cameras": ("Cameras", "Frusta in their agents' colours; predicted ones are white"),
    "images": ("Images", "What the cameras saw, at the end of each frustum"),
    "paths": ("Paths", "Where the agents drive in this scenario; all its poses are read first"),
    "axes": ("Axes", "Each vehicle's own: x right (red), y down (green), z forward (blue)"),
}


class Actions(Protocol):
    """The things that can be asked of a session; `do` runs a job in its thread, the others are such jobs."""

    def do(self, job: Callable[[], None]) -> None: ...
    def go(self, key: FrameKey) -> None: ...
    def step(self, by: int) -> None: ...
    def play(self, fps: float) -> None: ...
    def change(self, **values: Any) -> None: ...
    def show_agent(self, agent: str, visible: bool) -> None: ...
    def look_at(self, name: str) -> None: ...
    def snapshot(self) -> None: ...


class ControlPanel:
    """The widgets of one client. Its methods are called in the session's thread, after the session has been made."""

    def __init__(self, client: Any, catalog: Catalog, session: Actions, start: FrameKey, look: Look) -> None:
        self._gui, self._catalog, self._session = client.gui, catalog, session
        self._key = start
        self._agents = catalog.agents(start.split, start.scenario)
        self.frames = catalog.frames(start.split, start.scenario, start.agent)
        self._toggles: list[Any] = []
        self._layers: dict[str, Any] = {}
        self._build(look)

    def _build(self, look: Look) -> None:
        gui, session, key = self._gui, self._session, self._key
        self._status = gui.add_markdown("Loading ...")
        with gui.add_folder("Frame"):
            names = ["/".join(place) for place in self._catalog.scenarios]
            self._scenario = gui.add_dropdown("Scenario", names, initial_value=f"{key.split}/{key.scenario}")
            self._agent = gui.add_dropdown("Main agent", self._agents, initial_value=key.agent)
            self._frame = gui.add_dropdown("Frame", self.frames, initial_value=key.frame)
            at = self.frames.index(key.frame)
            self._number = gui.add_slider("Number", 0, max(len(self.frames) - 1, 1), 1, at, hint="The same, counted from 0")
            self._number.disabled = len(self.frames) < 2
            self._play = gui.add_button("Play", icon="player-play")
            step = gui.add_button_group("Step", ("Previous", "Next"))
            self._fps = gui.add_slider("Frames/s", 1.0, 20.0, 1.0, FPS)
        with gui.add_folder("View"):
            views = gui.add_button_group("From", tuple(VIEWS))
            self._camera = gui.add_dropdown("Camera", (CHOOSE,), hint="A camera's own view")
            snapshot = gui.add_button("Snapshot (PNG)", icon="camera", hint="Saved on the server and offered for download")
        with gui.add_folder("Layers"):
            for name, (label, hint) in LAYERS.items():
                if self._catalog.has_predictions or name not in ("prediction", "error"):
                    box = gui.add_checkbox(label, getattr(look, name), hint=hint)
                    self._on(box, lambda value, name=name: session.change(**{name: value}))
                    self._layers[name] = box
            self._clouds = gui.add_folder("LiDAR of single agents", expand_by_default=False)
        with gui.add_folder("Look"):
            colors = gui.add_dropdown("LiDAR colour", LIDAR_COLORS, initial_value=look.lidar_colors)
            self._on(colors, lambda value: session.change(lidar_colors=value))
            if self._catalog.has_predictions:
                colors = gui.add_dropdown("Prediction colour", PREDICTION_COLORS, initial_value=look.prediction_colors)
                self._on(colors, lambda value: session.change(prediction_colors=value))
            size = gui.add_slider("Points, cm", 1.0, 40.0, 1.0, look.point_size * 100, hint="Their size")
            self._on(size, lambda value: session.change(point_size=value / 100))
            reach = gui.add_slider("Range, m", 20.0, ALL_RANGE, 10.0, look.max_range, hint=f"To each side; {ALL_RANGE:g}: all")
            self._on(reach, lambda value: session.change(max_range=value))
            most = gui.add_slider("Max. points", 0.1, 5.0, 0.1, look.max_points / 1e6, hint="Of each cloud, in millions")
            self._on(most, lambda value: session.change(max_points=round(value * 1e6)))
            fewer = gui.add_checkbox(
                "Fewer moving", look.fewer_moving, hint="Fewer points while the view moves, all when it rests"
            )
            self._on(fewer, lambda value: session.change(fewer_moving=value))
            gui.add_html(_legends(self._catalog.has_predictions))
        self._show_toggles()

        self._on(self._scenario, self._choose_scenario)
        self._on(self._agent, lambda agent: self._choose(self._key.split, self._key.scenario, agent))
        self._on(self._frame, lambda frame: session.go(self._with_frame(frame)))
        self._on(self._number, lambda at: session.go(self._with_frame(self.frames[min(at, len(self.frames) - 1)])))
        self._on(self._fps, lambda fps: session.play(fps) if self._play.label == "Pause" else None)
        self._on_click(self._play, lambda: session.play(self._fps.value if self._play.label == "Play" else 0.0))
        self._on_click(step, lambda: session.step(1 if step.value == "Next" else -1))
        self._on_click(views, lambda: session.look_at(VIEWS[views.value]))
        self._on(self._camera, self._choose_camera)
        self._on_click(snapshot, session.snapshot)

    def show_place(self, key: FrameKey) -> None:
        """Sets the pickers; what a picker's callback did not start does not start it again."""
        if (key.split, key.scenario, key.agent) != (self._key.split, self._key.scenario, self._key.agent):
            self._agents = self._catalog.agents(key.split, key.scenario)
            self.frames = self._catalog.frames(key.split, key.scenario, key.agent)
            self._scenario.value = f"{key.split}/{key.scenario}"
            self._set_options(self._agent, self._agents, key.agent)
            self._set_options(self._frame, self.frames, key.frame)
            self._number.max = max(len(self.frames) - 1, 1)
            self._number.disabled = len(self.frames) < 2
            self._show_toggles()
        self._key = key
        self._frame.value = key.frame
        self._number.value = self.frames.index(key.frame)
        self.show_status("Loading ...")

    def show_frame(self, frame: ViewerFrame) -> None:
        self._set_options(self._camera, (CHOOSE, *frame.scene.cameras.labels), CHOOSE)

    def show_playing(self, playing: bool) -> None:
        self._play.label = "Pause" if playing else "Play"
        self._play.icon = "player-pause" if playing else "player-play"

    def show_layer(self, name: str, visible: bool) -> None:
        self._layers[name].value = visible

    def show_status(self, text: str) -> None:
        """Markdown, below the frame's name."""
        self._status.content = f"**{self._key.frame}** · agent {self._key.agent}  \n{text}"

    def _on(self, widget: Any, job: Callable[[Any], None]) -> None:
        """A change by the user; one by the program calls back too, without a client."""
        widget.on_update(lambda event: self._session.do(lambda: job(widget.value)) if event.client_id is not None else None)

    def _on_click(self, button: Any, job: Callable[[], None]) -> None:
        button.on_click(lambda _: self._session.do(job))

    def _choose_scenario(self, name: str) -> None:
        split, scenario = name.split("/")
        agents = self._catalog.agents(split, scenario)
        self._choose(split, scenario, self._key.agent if self._key.agent in agents else next(iter(agents), ""))

    def _choose(self, split: str, scenario: str, agent: str) -> None:
        """The same frame of another agent, where it has it."""
        frames = self._catalog.frames(split, scenario, agent) if agent else ()
        frame = self._key.frame if self._key.frame in frames else next(iter(frames), "")
        self._session.go(FrameKey(split, scenario, agent, frame))

    def _choose_camera(self, label: str) -> None:
        if label != CHOOSE:
            self._session.look_at(label)
            self._camera.value = CHOOSE  # so that the same one can be chosen again

    def _with_frame(self, frame: str) -> FrameKey:
        return FrameKey(self._key.split, self._key.scenario, self._key.agent, frame)

    @staticmethod
    def _set_options(widget: Any, options: Sequence[str], value: str) -> None:
        if widget.options != tuple(options):
            widget.options = tuple(options) or ("",)
        widget.value = value

    def _show_toggles(self) -> None:
        """A switch for each agent's LiDAR."""
        for toggle in self._toggles:
            toggle.remove()
        with self._clouds:
            self._toggles = [self._gui.add_checkbox(agent, True) for agent in self._agents]
        for toggle, agent in zip(self._toggles, self._agents, strict=True):
            self._on(toggle, lambda value, agent=agent: self._session.show_agent(agent, value))


def _legends(with_error: bool) -> str:
    low, high = HEIGHT_RANGE
    steps = np.linspace(low, high, 24)
    parts = [_legend("Height above the road, m", map_colors(steps, low, high), [f"{v:g}" for v in (low, 1, 3, high)])]
    if with_error:
        steps = np.geomspace(*ERROR_RANGE, 24)
        parts.append(_legend("Error, m", error_colors(steps), [f"{v:g}" for v in ERROR_TICKS]))
    roles = "".join(f'<span style="color:{_css(agent_color(role))}">&#9632;</span> ' for role in range(7))
    parts.append(f'<div style="margin-top:.5em">Agents, the main one first: {roles}</div>')
    return f'<div style="font-size:.8em;padding:0 .8em .3em .8em">{"".join(parts)}</div>'


def _legend(title: str, colors: Colors, ticks: Sequence[str]) -> str:
    stops = ",".join(_css(color) for color in colors)
    labels = "".join(f"<span>{tick}</span>" for tick in ticks)
    return (
        f'<div style="margin-top:.5em">{title}</div>'
        f'<div style="height:.7em;border-radius:2px;background:linear-gradient(to right,{stops})"></div>'
        f'<div style="display:flex;justify-content:space-between">{labels}</div>'
    )


def _css(color: Colors) -> str:
    return f"#{color[0]:02x}{color[1]:02x}{color[2]:02x}"
