"""One browser tab: its panel, what it shows, its playback. Every tab has a state of its own.

All of it happens in one thread: what the panel's callbacks do is queued as a job, jobs only change the state, and when no job
is left the thread draws what is due. So nothing is locked here, and a slider that is dragged is drawn where it is then, not
where it has been. After each drawing the browser is asked for a sign of life; until it comes nothing more is sent: a slow
connection plays fewer frames, and no queue of them grows.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.geometry.types import Float
from mapanything.opv2v.layout import FrameKey
from mapanything.pictures.render import View, chase_view, save_view_png
from mapanything.pictures.viewpoints import camera_view
from mapanything.viewer.browser import Browser, look_from, view_of
from mapanything.viewer.frames import Loader, ViewerFrame
from mapanything.viewer.layers import Layer, Look, visible_layers
from mapanything.viewer.panel import ControlPanel

ANSWER_S = 30.0  # a hidden tab answers late or never
REST_S = 0.4  # so long after its last move a view counts as still
NOTE_S = 12.0  # a notification's time


class Session:
    """Serves one client until `close`.

    Args:
        client: viser's handle.
        loader: shared by all sessions.
        start: the frame to show first.
        output: snapshots are written below output/<date>/.
        is_there: whether the client is still connected.
    """

    def __init__(self, client: Any, loader: Loader, start: FrameKey, output: Path, is_there: Callable[[], bool]) -> None:
        self._client, self._loader, self._output, self._is_there = client, loader, output, is_there
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._browser = Browser(client)
        self._wanted = start
        self._look = Look()
        self._frame: ViewerFrame | None = None
        self._failed: FrameKey | None = None
        self._loading = False
        self._positions: dict[tuple[str, str], dict[str, Float]] = {}  # of one scenario
        self._dirty = True  # what is drawn is not what is wanted
        self._playing_fps = 0.0
        self._next_time = 0.0
        self._refining = False
        self._moved = 0.0  # when the view did last
        self._coarse = False  # drawn with fewer points, because it moves
        self._note: Any = None
        self._panel = ControlPanel(client, loader.catalog, self, start, self._look)
        client.camera.on_update(self._view_moves)
        self._thread = threading.Thread(target=self._run, name=f"viewer-{client.client_id}", daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        """Runs a job in the session's thread."""
        self._jobs.put(job)

    def close(self) -> None:
        self._jobs.put(None)

    # What the panel's callbacks do, as jobs.

    def go(self, key: FrameKey) -> None:
        if key != self._wanted or key == self._failed:
            self._wanted, self._failed, self._dirty = key, None, True
            self._panel.show_place(key)

    def step(self, by: int) -> None:
        """Goes to another frame of the same agent; behind the last one comes the first."""
        frames = self._panel.frames
        at = frames.index(self._wanted.frame) if self._wanted.frame in frames else 0
        self.go(replace(self._wanted, frame=frames[(at + by) % len(frames)]))

    def play(self, fps: float) -> None:
        """Plays so many frames per second; 0 pauses."""
        self._playing_fps = fps if len(self._panel.frames) > 1 else 0.0
        self._next_time = time.monotonic()
        self._refining = not self._playing_fps  # frames come with fewer points while they play
        self._panel.show_playing(self._playing_fps > 0)

    def change(self, **values: Any) -> None:
        """Fields of `Look`."""
        self._look = replace(self._look, **values)
        self._dirty = True

    def show_agent(self, agent: str, visible: bool) -> None:
        """True if an agent's LiDAR is drawn."""
        self.change(hidden=self._look.hidden - {agent} if visible else self._look.hidden | {agent})

    def look_at(self, name: str) -> None:
        """Looks from the `top`, from behind (`chase`), or through a camera, by its label: over its own image."""
        self._browser.backdrop, self._dirty = "", True
        if name == "chase":
            look_from(self._client, chase_view())
        elif name == "top":
            height = min(self._look.max_range, 120.0)
            look_from(self._client, View.look_at((0.0, -height, -0.02 * height), (0.0, 0.0, 0.0)))
        elif self._frame is not None and name in self._frame.scene.cameras.labels:
            cameras = self._frame.scene.cameras
            i = cameras.labels.index(name)
            up = -cameras.world_from_camera[i][:3, 1]
            look_from(self._client, camera_view(cameras, i, *map(int, cameras.sizes[i])), tuple(up))
            self._browser.backdrop = name  # what is in front of it is drawn over its image

    def snapshot(self) -> None:
        """Draws what this client sees, all points of it, into a file, and offers it for download."""
        if self._frame is None:
            return self._tell("Nothing to save", "No frame is shown.")
        key = self._frame.key
        folder = self._output / datetime.date.today().isoformat()
        stem = f"viewer_{key.split}_{key.scenario}_{key.agent}_{key.frame}"
        number = next(n for n in range(1, sys.maxsize) if not (folder / f"{stem}_{n}.png").exists())
        path = folder / f"{stem}_{number}.png"
        items = [layer.make() for layer in self._visible(self._frame).values()]
        try:
            save_view_png(items, path, view_of(self._client, self._look))
            self._client.send_file_download(path.name, path.read_bytes())
        except (InputError, OSError) as error:
            return self._tell("Not saved", str(error), "red")
        self._tell("Saved", str(path), "green")

    async def _view_moves(self, _: Any) -> None:
        """Each time the camera has moved; in viser's event loop, therefore brief."""
        self._moved = time.monotonic()
        if self._look.fewer_moving and not self._coarse:
            self._coarse = True
            self.do(lambda: self._browser.show_fine(False))

    # The thread.

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._pause())
            except queue.Empty:
                job = self._work
            if job is None:
                return
            try:
                job()
            except InputError as error:
                self._tell("Not done", str(error), "red")
            except Exception as error:  # a bug of ours: it keeps its traceback, and the viewer lives on
                if not self._is_there():
                    return
                traceback.print_exc()
                self._tell("Internal error", f"{type(error).__name__}: {error}", "red")

    def _pause(self) -> float | None:
        """Seconds until there is something to do without a job; None: nothing is."""
        if self._loading:
            return None  # a job comes when it is loaded
        if self._dirty or (self._refining and not self._coarse):
            return 0.0
        due = ([self._moved + REST_S] if self._coarse else []) + ([self._next_time] if self._playing_fps else [])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _work(self) -> None:
        if self._dirty:
            self._advance()
        elif self._coarse and time.monotonic() >= self._moved + REST_S:
            self._coarse = False
            self._browser.show_fine(True)
        elif self._playing_fps and time.monotonic() >= self._next_time:
            self._next_time = max(self._next_time + 1 / self._playing_fps, time.monotonic())
            self.step(1)
        elif self._refining and not self._coarse:
            self._refining = self._browser.refine(self._look) and not self._playing_fps
            self._wait_for_browser()
            self._show_status()

    def _advance(self) -> None:
        """Loads what is wanted, then draws it."""
        if self._wanted == self._failed:
            self._dirty = False
        elif self._frame is None or self._frame.key != self._wanted:
            self._load(self._loader.request(self._wanted), self._loaded)
        elif self._look.error and not self._frame.has_error:
            self._panel.show_status("Measuring the error ...")
            self._load(self._loader.request_error(self._frame), lambda _: None, "error")
        elif self._look.paths and self._place() not in self._positions:
            self._panel.show_status("Reading the scenario's poses ...")
            place = self._place()
            self._load(self._loader.request_positions(*place), lambda found: self._keep(place, found), "paths")
        else:
            self._dirty = False
            self._browser.show(self._visible(self._frame), self._frame, self._look)
            self._wait_for_browser()
            self._refining = not self._playing_fps
            self._show_status()
            self._prefetch()

    def _place(self) -> tuple[str, str]:
        return self._wanted.split, self._wanted.scenario

    def _keep(self, place: tuple[str, str], positions: dict[str, Float]) -> None:
        self._positions = {place: positions}

    def _visible(self, frame: ViewerFrame) -> dict[str, Layer]:
        return visible_layers(frame, self._look, self._positions.get((frame.key.split, frame.key.scenario)))

    def _load(self, future: Future[Any], then: Callable[[Any], None], layer: str = "") -> None:
        """Waits in the background, then calls `then` with the result; what a `layer` alone needs may fail."""
        key = self._wanted

        def arrived() -> None:
            self._loading = False
            try:
                then(future.result())
            except InputError as error:
                self._fail(key, str(error), layer)
            except Exception as error:
                traceback.print_exc()
                self._fail(key, f"internal error, {type(error).__name__}: {error}", layer)

        self._loading = True
        future.add_done_callback(lambda _: self._jobs.put(arrived))

    def _loaded(self, frame: ViewerFrame) -> None:
        if frame.key == self._wanted:
            self._frame = frame
            self._panel.show_frame(frame)
            if frame.problems:
                first, *others = frame.problems
                self._tell("Incomplete frame", first + (f" (and {len(others)} more)" if others else ""), "yellow")

    def _fail(self, key: FrameKey, line: str, layer: str) -> None:
        """Nothing of another frame stays under this one's name."""
        if layer:
            self.change(**{layer: False})
            self._panel.show_layer(layer, False)
            return self._tell(f"No {layer}", line, "red")
        self._tell(f"Frame {key.frame} can't be shown", line, "red")
        if key == self._wanted:
            self._failed, self._frame, self._dirty = key, None, False
            self._browser.clear()
            self._panel.show_status(f"**Can't be shown:** {_plain(line)}")

    def _prefetch(self) -> None:
        """The next frame, and while playing the one behind it."""
        frames = self._panel.frames
        if self._wanted.frame in frames and len(frames) > 1:
            at = frames.index(self._wanted.frame)
            for by in (1, 2) if self._playing_fps else (1,):
                self._loader.request(replace(self._wanted, frame=frames[(at + by) % len(frames)]))

    def _wait_for_browser(self) -> None:
        """Waits until the browser has all that was sent: it answers in order."""
        self._client.flush()
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._client.local_storage.get_item("ready", timeout=ANSWER_S)

    def _show_status(self) -> None:
        if self._frame is not None:
            there, total = self._browser.points()
            rest = "" if there == total else f" of {total:,}"
            self._panel.show_status(f"{there:,}{rest} points · {len(self._frame.scene.boxes)} vehicles")

    def _tell(self, title: str, text: str, color: str | None = None) -> None:
        """One notification at a time: while playing through broken frames there would be a wall of them."""
        if self._note is not None:
            self._note.remove()
        self._note = self._client.add_notification(title, text, auto_close_seconds=NOTE_S, color=color)


def _plain(text: str) -> str:
    """Escapes what Markdown would take for its own."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-!<>|~" else c for c in text)
