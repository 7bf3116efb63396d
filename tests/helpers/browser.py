"""Headless Chromium over the DevTools protocol, as much of it as the viewer's tests need; nothing but `websockets`.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--password-store=basic",
]
START_S = 30.0
ANSWER_S = 60.0


class Browser:
    """One page. `requests` are the URLs of everything that it asked for, websockets included.

    Args:
        folder: an empty one for the profile.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 800) -> None:
        assert CHROMIUM is not None
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._count = 0
        # Without the session's variables: Chromium would look for a display or a proxy.
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ} | {"HOME": str(folder)}
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = self._port(folder / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=START_S) as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            self._socket: ClientConnection = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        except BaseException:
            self._process.kill()
            raise
        # Workers too: viser's websocket lives in one. They wait until their requests are being noted.
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        with contextlib.suppress(Exception):
            self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's answer; what happens in the page meanwhile is noted."""
        number = self._send(method, **params)
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _send(self, method: str, target: str = "", **params: Any) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | ({"sessionId": target} if target else {})
        self._socket.send(json.dumps(message))
        return self._count

    def evaluate(self, code: str) -> Any:
        """A JavaScript expression's value, or its promise's."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3)"""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 8) -> None:
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        for i in range(1, steps + 1):
            x, y = (a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)

    def text(self) -> str:
        """All that can be read on the page."""
        return self.evaluate('document.body ? document.body.innerText : ""')

    def press(self, label: str) -> None:
        """Clicks the button of this name, or the checkbox behind this label."""
        found = self.evaluate(
            f"""(() => {{
                const button = [...document.querySelectorAll("button")].find(e => e.innerText.trim() == {json.dumps(label)});
                if (button) {{ button.click(); return true; }}
                const name = [...document.querySelectorAll("label")].find(e => e.innerText.trim() == {json.dumps(label)});
                const box = name && document.getElementById(name.htmlFor);
                if (box) box.click();
                return Boolean(box);
            }})()"""
        )
        assert found, f"no {label!r} on the page"

    def wait_for(self, what: Callable[[], Any], seconds: float = 60.0) -> Any:
        """The value of a condition, as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)
        return value

    def _port(self, file: Path) -> int:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, ValueError, IndexError):
                return int(file.read_text().splitlines()[0])
            assert self._process.poll() is None and time.monotonic() < end, "Chromium does not start"
            time.sleep(0.05)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Target.attachedToTarget":
            for command in ("Network.enable", "Runtime.runIfWaitingForDebugger"):
                self._send(command, params["sessionId"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(str(params["entry"]))
