"""The viewer's server, and the whole of it in a headless Chromium."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
import viser
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from mapanything.errors import InputError
from mapanything.viewer import gate
from mapanything.viewer.frames import Catalog
from mapanything.viewer.gate import is_local, may_connect, may_load, parse_head
from mapanything.viewer.server import Viewer
from tests.helpers.browser import CHROMIUM, Browser

WIDTH, HEIGHT = 1080, 620
SCENE = (slice(None), slice(320, 730))  # of a screenshot: no panel at the right, no notifications at the left


@pytest.fixture
def viewer(sample_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> Iterator[Viewer]:
    catalog = Catalog(sample_root)
    viewer = Viewer(catalog, catalog.first(), "127.0.0.1", 0, tmp_path / "out")
    yield viewer
    viewer.close()
    assert capfd.readouterr().out == ""  # viser's own greetings are kept back


def test_port_in_use_is_refused(viewer: Viewer):
    with pytest.raises(InputError, match=f"--port {viewer.port}: is in use"):
        Viewer(viewer._loader.catalog, viewer._start, "127.0.0.1", viewer.port)


def test_address_of_another_machine_is_refused(viewer: Viewer):
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(InputError, match=f"--host {host}"):
            Viewer(viewer._loader.catalog, viewer._start, host, 0)


def test_only_the_address_that_was_asked_for_is_bound(viewer: Viewer):
    with urllib.request.urlopen(f"http://127.0.0.1:{viewer.port}/", timeout=10) as page:
        assert page.status == 200
    with socket.socket() as probe:  # an address of this machine too, on which nothing listens
        probe.settimeout(5)
        assert probe.connect_ex(("127.0.0.2", viewer.port)) != 0


def test_no_tunnel_to_another_host(viewer: Viewer, monkeypatch: pytest.MonkeyPatch):
    import viser._viser

    def tunnel(*_: object) -> None:
        raise AssertionError("a tunnel was opened")

    monkeypatch.setattr(viser._viser, "ViserTunnel", tunnel)
    assert viewer._server.request_share_url() is None


@pytest.mark.parametrize(
    ("host", "origin", "local", "expected"),
    [
        ("localhost:8080", "http://localhost:8080", True, True),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True, True),
        ("[::1]:8080", "http://[::1]:8080", True, True),
        ("192.0.2.7:8080", "http://192.0.2.7:8080", False, True),
        ("192.0.2.7:8080", "http://192.0.2.7:8080", True, False),
        ("GPU3:8080", "http://gpu3:8080", True, True),  # is in `names`
        ("gpu4:8080", "http://gpu4:8080", False, False),  # may have been made to lead here
        ("localhost:8080", "http://evil.example", True, False),
        ("localhost:8080", "http://localhost:9999", True, False),
        ("evil.example:8080", "http://evil.example:8080", True, False),
        ("localhost:8080", "null", True, False),
        ("localhost:8080", "", True, False),
    ],
)
def test_only_own_pages_may_connect(host: str, origin: str, local: bool, expected: bool):
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    assert may_connect(headers, local, {"gpu3"}) is expected


@pytest.mark.parametrize(
    ("host", "origin", "local", "expected"),
    [
        ("localhost:8080", None, True, True),
        ("gpu3:8080", None, False, True),
        ("gpu4:8080", None, False, False),
        ("evil.example:8080", None, True, False),
        ("[::1", None, True, False),
        ("", None, True, False),
        ("localhost:8080", "http://localhost:8080", True, True),
        ("localhost:8080", "http://evil.example", True, False),
    ],
)
def test_pages_are_served_under_own_names(host: str, origin: str | None, local: bool, expected: bool):
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert may_load(headers, local, {"gpu3"}) is expected


def test_too_many_pages_are_told_so(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_CLIENTS", 3)
    place = f"127.0.0.1:{viewer.port}"
    protocol = Subprotocol(f"viser-v{viser.__version__}")

    def page() -> ClientConnection:
        return connect(f"ws://{place}", origin=Origin(f"http://{place}"), subprotocols=[protocol])

    pages = [page() for _ in range(3)]
    with pytest.raises(InvalidStatus) as refused:
        page()
    assert refused.value.response.status_code == 503 and b"3 pages show the viewer already" in (
        refused.value.response.body or b""
    )
    pages.pop().close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the place is free again, as soon as the server has seen it
        try:
            pages.append(page())
            break
        except InvalidStatus:
            time.sleep(0.05)
    assert len(pages) == 3
    for one in pages:
        one.close()


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: a\r\nHost: b",
        b"Host: a\r\n Origin: b",
        b"Host : a",
        b"Host: a\nOrigin: b",
        b"Host: a\x00",
        b"no header",
        b": empty",
    ],
)
def test_a_malformed_head_is_no_head(lines: bytes):
    assert parse_head(b"GET / HTTP/1.1\r\n" + lines + b"\r\n\r\n") is None
    assert parse_head(b"GET / HTTP/1.1\r\nhOST: \ta \r\n\r\n") == {"Host": "a"}


def ask(port: int, *lines: str, then: bytes = b"") -> bytes:
    """All that comes back for a request, and for what is sent behind it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode() + then)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


def test_nothing_of_another_page_reaches_viser(viewer: Viewer):
    own = f"127.0.0.1:{viewer.port}"
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {'A' * 22}==")
    foreign = [
        (f"Host: evil.example:{viewer.port}",),  # DNS rebinding: the name leads here
        (f"Host: {own}", "Origin: http://evil.example"),
        (f"Host: {own}", "Origin: http://evil.example", *upgrade),
        (f"Host: evil.example:{viewer.port}", f"Origin: http://evil.example:{viewer.port}", *upgrade),
        (f"Host: {own}", *upgrade),  # no browser's
    ]
    for lines in foreign:
        answer = ask(viewer.port, *lines)
        assert answer.startswith(b"HTTP/1.1 403 ") and b"open the address that it printed" in answer
    assert ask(viewer.port, f"Host: {own}", "Content-Length: 3", then=b"abc").startswith(b"HTTP/1.1 400 ")
    assert viewer._server.get_clients() == {}
    page = ask(viewer.port, f"Host: {own}", then=f"GET /no.such HTTP/1.1\r\nHost: {own}\r\n\r\n".encode())
    assert page.startswith(b"HTTP/1.1 200 ") and page.count(b"HTTP/1.1 ") == 1  # what comes behind it was not looked at


def test_own_page_gets_a_session_and_leaves(viewer: Viewer):
    """A page in short: it says how it looks, and is sent the frame's points."""
    own, version = f"127.0.0.1:{viewer.port}", Subprotocol(f"viser-v{viser.__version__}")
    camera: dict[str, object] = {"wxyz": (1, 0, 0, 0), "position": (0, 0, 0), "look_at": (0, 0, 1), "up_direction": (0, -1, 0)}
    camera |= {"fov": 1.0, "near": 0.1, "far": 1000.0, "image_height": 600, "image_width": 800}
    with connect(f"ws://{own}", origin=Origin(f"http://{own}"), subprotocols=[version], max_size=None, proxy=None) as page:
        page.send(msgspec.msgpack.encode({"type": "ViewerCameraMessage"} | camera))
        received, end = 0, time.monotonic() + 60
        while received < 20_000 and time.monotonic() < end:
            received += len(page.recv(timeout=60))
        assert received >= 20_000 and len(viewer._sessions) == 1
    while viewer._sessions and time.monotonic() < end:
        time.sleep(0.05)
    assert viewer._sessions == {} and viewer._server.get_clients() == {}


def test_viser_itself_listens_where_no_page_can_guess(viewer: Viewer):
    host, port = viewer._server.get_host(), viewer._server.get_port()
    assert is_local(host) and host != "127.0.0.1" and port != viewer.port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_lock_has_the_viser_that_this_was_tried_with():
    """Nothing of it is relied on beyond its documentation but that a client's wish for a tunnel calls `request_share_url`:
    with another version, look whether it still does, and run the tests in a browser."""
    lock = (Path(__file__).parents[2] / "requirements" / "cpu.txt").read_text()
    assert re.findall(r"^viser==(\S+)", lock, re.M) == [viser.__version__] == ["1.1.1"]


def test_which_addresses_are_local():
    assert [is_local(h) for h in ("localhost", "127.0.0.1", "127.0.0.9", "::1", "0.0.0.0", "::", "10.0.0.3", "gpu3")] == [
        *[True] * 4,
        *[False] * 4,
    ]


def scene_of(page: Browser) -> NDArray[np.int64]:
    return page.picture()[SCENE].astype(np.int64)


def white(picture: NDArray[np.int64]) -> int:
    """Pixels of boxes and their names."""
    return int((picture.min(axis=2) > 215).sum())


def road(picture: NDArray[np.int64]) -> NDArray[np.bool_]:
    """LiDAR points on the road: (H, W)."""
    return (picture[..., 2] > 200) & (picture[..., 0] < 110)


def blue(picture: NDArray[np.int64]) -> int:
    return int(road(picture).sum())


def changed(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float((np.abs(a - b).max(axis=2) > 40).mean())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this host")
def test_in_the_browser(viewer: Viewer, sample_root: Path, tmp_path: Path):
    catalog, start = viewer._loader.catalog, viewer._start
    frames = catalog.frames(start.split, start.scenario, start.agent)
    with Browser(tmp_path / "profile", WIDTH, HEIGHT) as page:

        def until(holds: Callable[[NDArray[np.int64]], bool]) -> NDArray[np.int64]:
            """A screenshot for which that holds; the browser draws some time after it has been told."""
            shots = []

            def look() -> bool:
                shots[:] = [scene_of(page)]
                return holds(shots[0])

            page.wait_for(look)
            return shots[0]

        page.open(f"http://127.0.0.1:{viewer.port}/?fixedDpr=1")
        page.wait_for(lambda: " points" in page.text() and frames[0] in page.text(), 60)
        first = until(lambda shot: white(shot) > 300 and blue(shot) > 300)

        session = next(iter(viewer._sessions.values()))
        page.drag((400, 420), (530, 440))
        dragged = until(lambda shot: changed(shot, first) > 0.05)
        assert white(dragged) > 100

        page.press("Chase")
        back = until(lambda shot: changed(shot, first) < 0.02)
        page.press("Boxes")
        unboxed = until(lambda shot: white(shot) < 0.3 * white(back))
        assert blue(unboxed) > 0.8 * blue(back)
        page.press("LiDAR")
        until(lambda shot: blue(shot) < 0.2 * blue(back))
        page.press("LiDAR")
        page.press("Boxes")
        until(lambda shot: changed(shot, back) < 0.02)

        page.press("Next")
        page.wait_for(lambda: f"{frames[1]} ·" in page.text() and " points" in page.text())
        until(lambda shot: changed(shot, back) > 0.01 and white(shot) > 300)

        page.press("Play")
        for name in (frames[0], frames[1], frames[0]):
            page.wait_for(lambda name=name: f"{name} ·" in page.text())
        page.press("Pause")
        page.wait_for(lambda: "Pause" not in page.text())
        session.do(lambda: session.go(replace(start, frame=frames[1])))
        page.wait_for(lambda: f"{frames[1]} ·" in page.text() and " points" in page.text())
        until(lambda shot: white(shot) > 300)

        page.press("Snapshot (PNG)")
        saved = page.wait_for(lambda: list((tmp_path / "out").rglob("*.png")))
        assert saved[0].name == f"viewer_{start.split}_{start.scenario}_{start.agent}_{frames[1]}_1.png"
        picture = Image.open(saved[0])
        assert picture.height == 1080 and abs(picture.width / 1080 - WIDTH / HEIGHT) < 0.01
        drawn = np.asarray(picture.resize((WIDTH, HEIGHT)))[SCENE].astype(np.int64)
        around = np.asarray(Image.fromarray(road(drawn)).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        assert around[road(scene_of(page))].mean() > 0.9  # the very same view
        assert around.mean() < 0.3

        # A frame that breaks is said, nothing of the last one stays, and the next one is shown.
        other = next(place for place in catalog.scenarios if place != (start.split, start.scenario))
        broken = replace(start, split=other[0], scenario=other[1])
        broken = replace(broken, frame=catalog.frames(*other, broken.agent)[0])
        (sample_root / broken.split / broken.scenario / broken.agent / f"{broken.frame}.yaml").write_text("{")
        session.do(lambda: session.go(broken))
        page.wait_for(lambda: "Can't be shown" in page.text() and f"{broken.frame}.yaml" in page.text())
        until(lambda shot: white(shot) + blue(shot) < 20)
        page.press("Next")
        page.wait_for(lambda: " points" in page.text())
        until(lambda shot: blue(shot) > 300)

        asked = list(page.requests)
        page.evaluate('fetch("http://elsewhere.invalid/").catch(() => 0)')
        assert "http://elsewhere.invalid/" in page.requests  # what is asked of others would be seen
    end = time.monotonic() + 30
    while viewer._sessions and time.monotonic() < end:  # a closed tab's session ends
        time.sleep(0.1)
    assert viewer._sessions == {}
    assert page.errors == [] or all("elsewhere.invalid" in error for error in page.errors)
    assert f"ws://127.0.0.1:{viewer.port}" in [url.rstrip("/") for url in asked]
    for url in asked:
        parts = urlsplit(url.removeprefix("blob:"))
        assert parts.scheme == "data" or parts.netloc == f"127.0.0.1:{viewer.port}", url
