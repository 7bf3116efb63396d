"""The viewer in the browser: viser's server behind a gate, with a session for each tab.

viser would open a tunnel to the internet for any client that asks: the request is not answered.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mapanything.opv2v.layout import FrameKey
from mapanything.pictures.render import NEAR, chase_view
from mapanything.viewer.browser import UP, orbit_centre, vertical_fov
from mapanything.viewer.frames import Catalog, Loader
from mapanything.viewer.gate import Gate, hidden_address, is_local, listen
from mapanything.viewer.session import Session

OUTPUT = Path("visualization_outputs")


class Viewer:
    """A running viewer. `port` is the one it listens on, which the system chose where 0 was given; `names`: see `Gate`.

    Raises:
        InputError: the port is in use, or the address can't be bound.
    """

    def __init__(
        self,
        catalog: Catalog,
        start: FrameKey,
        host: str,
        port: int,
        output: Path = OUTPUT,
        names: Collection[str] = (),
    ) -> None:
        sockets = listen(host, port)
        self.port: int = sockets[0].getsockname()[1]
        self._loader = Loader(catalog)
        self._start, self._output = start, output
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._server = server = _server()
        server.scene.set_up_direction("-y")
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="medium")
        server.gui.set_panel_label("OPV2V viewer")
        view = chase_view()
        camera = server.initial_camera
        camera.position, camera.look_at, camera.up = view.world_from_camera[:3, 3], orbit_centre(view), UP
        camera.fov, camera.near = vertical_fov(view), NEAR
        server.on_client_connect(self._connect)
        server.on_client_disconnect(self._disconnect)
        self._gate = Gate(sockets, (server.get_host(), server.get_port()), is_local(host), names)

    def close(self) -> None:
        self._gate.close()
        with self._lock:
            for session in self._sessions.values():
                session.close()
        self._loader.close()
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints that it has stopped
            self._server.stop()

    def _connect(self, client: Any) -> None:
        def is_there() -> bool:
            return client.client_id in self._server.get_clients()

        session = Session(client, self._loader, self._start, self._output, is_there)
        with self._lock:
            self._sessions[client.client_id] = session
        if not is_there():  # left while its session was made
            self._disconnect(client)

    def _disconnect(self, client: Any) -> None:
        with self._lock:
            session = self._sessions.pop(client.client_id, None)
        if session is not None:
            session.close()


def _server() -> Any:
    import viser

    class Server(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            """No tunnel to another host, whoever asks."""

    # A tab that is closed while something is being sent to it is nothing to warn of.
    warnings.filterwarnings("ignore", message=r"Queued a \w+ on a closed connection")
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints its address, which is nobody's business
        return Server(host=hidden_address(), port=0, verbose=False)
