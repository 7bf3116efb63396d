"""The viewer's server, and the whole of it in a headless Chromium."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mapanything.errors import InputError
from mapanything.viewer.frames import Catalog
from mapanything.viewer.server import Viewer, is_local, may_connect
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
        ("gpu3:8080", "http://gpu3:8080", False, True),
        ("gpu3:8080", "http://gpu3:8080", True, False),
        ("localhost:8080", "http://evil.example", True, False),
        ("localhost:8080", "http://localhost:9999", True, False),
        ("evil.example:8080", "http://evil.example:8080", True, False),
        ("localhost:8080", "null", True, False),
        ("localhost:8080", "", True, False),
    ],
)
def test_only_own_pages_may_connect(host: str, origin: str, local: bool, expected: bool):
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    assert may_connect(headers, local) is expected


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
