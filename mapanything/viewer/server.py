"""The viewer in the browser: viser's server with a session for each tab.

Notable:
- viser takes the next free port when one is in use, and hangs when an address can't be bound: both are refused before.
- viser would open a tunnel to the internet for any client that asks: the request is not answered.
- Any page in the same browser could connect to a server on localhost: only pages that this server has sent get a session.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import socket
import threading
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mapanything.errors import InputError
from mapanything.opv2v.layout import FrameKey
from mapanything.pictures.render import NEAR, chase_view
from mapanything.viewer.browser import UP, orbit_centre, vertical_fov
from mapanything.viewer.frames import Catalog, Loader
from mapanything.viewer.session import Session

OUTPUT = Path("visualization_outputs")
LOCAL = ("127.0.0.1", "localhost", "::1")


class Viewer:
    """A running viewer. `port` is the one it listens on, which the system chose where 0 was given.

    Raises:
        InputError: the port is in use, or the address can't be bound.
    """

    def __init__(self, catalog: Catalog, start: FrameKey, host: str, port: int, output: Path = OUTPUT) -> None:
        _check_free(host, port)
        self._loader = Loader(catalog)
        self._start, self._output = start, output
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._local_only = is_local(host)
        self._server = _server(host, port)
        self.port: int = self._server.get_port()
        if port not in (0, self.port):  # somebody was faster
            self.close()
            raise _in_use(host, port)
        server = self._server
        server.scene.set_up_direction("-y")
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="medium")
        server.gui.set_panel_label("OPV2V viewer")
        view = chase_view()
        camera = server.initial_camera
        camera.position, camera.look_at, camera.up = view.world_from_camera[:3, 3], orbit_centre(view), UP
        camera.fov, camera.near = vertical_fov(view), NEAR
        server.on_client_connect(self._connect)
        server.on_client_disconnect(self._disconnect)

    def close(self) -> None:
        with self._lock:
            for session in self._sessions.values():
                session.close()
        self._loader.close()
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints that it has stopped
            self._server.stop()

    def _connect(self, client: Any) -> None:
        connection = self._server._websock_server._live_connections.get(client.client_id)
        if connection is None:  # gone already
            return
        if not may_connect(connection.request.headers, self._local_only):
            client.add_notification("Refused", "This page is not the viewer's own; open the address that it printed.")
            return
        session = Session(client, self._loader, self._start, self._output)
        with self._lock:
            self._sessions[client.client_id] = session
        if client.client_id not in self._server.get_clients():  # left while its session was made
            self._disconnect(client)

    def _disconnect(self, client: Any) -> None:
        with self._lock:
            session = self._sessions.pop(client.client_id, None)
        if session is not None:
            session.close()


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_connect(headers: Any, local_only: bool) -> bool:
    """Whether a connection comes from a page of this server: its Origin is the Host it was asked under, and where only this
    machine is served that is a name of this machine (another name may be made to lead here: DNS rebinding)."""
    host = headers.get("Host", "")
    origin = urlsplit(headers.get("Origin", ""))
    if origin.scheme not in ("http", "https") or origin.netloc.lower() != host.lower():
        return False
    return not local_only or (origin.hostname or "") in LOCAL or is_local(origin.hostname or "")


def _server(host: str, port: int) -> Any:
    import viser

    class Server(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            """No tunnel to another host, whoever asks."""

    # A tab that is closed while something is being sent to it is nothing to warn of.
    warnings.filterwarnings("ignore", message=r"Queued a \w+ on a closed connection")
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints its address, also where it is reached by another
        return Server(host=host, port=port, verbose=False)


def _check_free(host: str, port: int) -> None:
    """Binds as viser will."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InputError(f"--host {host}: is no address of this machine ({error.strerror})") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _in_use(host, port) from error
                raise InputError(f"--host {host} --port {port}: can't be listened on ({error.strerror})") from error


def _in_use(host: str, port: int) -> InputError:
    return InputError(f"--port {port}: is in use on {host}; end that program or give another port")
