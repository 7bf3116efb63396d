"""Open3D's window on a virtual display (Xvfb): xdotool presses the keys, snapshots and the screen show what they do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageGrab, features

from mapanything.errors import InputError
from mapanything.pictures.scenes import Boxes, Cloud
from mapanything.pictures.window import HELP, show

REPOSITORY = Path(__file__).parents[2]
missing = [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]
needs_display = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (apt-get install xvfb xdotool)")

COLORS = {"cloud": (80, 80, 255), "ground_truth": (0, 255, 0), "boxes": (255, 255, 0), "cameras": (255, 0, 255)}
SCRIPT = f"""
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from mapanything.errors import run_command
from mapanything.opv2v.layout import Selection, scan
from mapanything.pictures import render
from mapanything.pictures.scenes import Cloud, build_scene, read_timestamp
from mapanything.pictures.window import show

colors = {{name: np.array(color, np.uint8) for name, color in {COLORS}.items()}}
folders = list(scan(Path("tests/fixtures/sample_opv2v/opv2v_images"), Selection(splits=("train",))))
scene = build_scene(read_timestamp(folders, folders[0].agent, min(folders[0].frames)), max_range=40)
boxes = replace(scene.boxes, colors=np.tile(colors["boxes"], (len(scene.boxes), 1)))
layers = {{
    "cloud": [Cloud(cloud.points, colors["cloud"]) for cloud in scene.clouds],
    "ground_truth": [Cloud(cloud.points - np.float32([0, 4, 0]), colors["ground_truth"]) for cloud in scene.clouds],
    "boxes": [boxes],
    "cameras": [scene.cameras.painted(colors["cameras"])],
}}
run_command(lambda: show(layers, title="a sample", snapshot=Path(sys.argv[1]), view=render.chase_view(480, 360)))
"""


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """The name of a display that nobody else has."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as said:
            number = said.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(30)


class Shown:
    """A process that shows the sample, and its keyboard. Every key is answered by a line, so nothing waits for a time."""

    def __init__(self, display: str, snapshot: Path) -> None:
        self.environment = os.environ | {"DISPLAY": display}
        command, pipe = [sys.executable, "-c", SCRIPT, str(snapshot)], subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def __enter__(self) -> Shown:
        assert self.line() == "a sample", self.process.communicate()
        assert self.line() == HELP
        window = self.xdotool("search", "--sync", "--name", "^a sample$").split()[-1]
        self.xdotool("windowfocus", "--sync", window)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def xdotool(self, *words: str) -> str:
        done = subprocess.run(["xdotool", *words], env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def press(self, key: str) -> str:
        """The line that a key prints."""
        self.xdotool("key", key)
        return self.line()

    def picture(self) -> np.ndarray:
        """A snapshot by the S key: (H, W, 3)."""
        return np.asarray(Image.open(self.press("s")))

    def end(self) -> tuple[int, str]:
        """Exit code and stderr of a process that is closing."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def layers_in(picture: np.ndarray) -> set[str]:
    return {name for name, color in COLORS.items() if (picture == color).all(axis=2).sum() > 20}


@needs_display
def test_keys_do_what_help_says(display: str, tmp_path: Path) -> None:
    with Shown(display, tmp_path / "new" / "sample.png") as shown:
        everything = shown.picture()
        assert everything.shape == (360, 480, 3) and layers_in(everything) == set(COLORS)
        if features.check("xcb"):
            screen = np.asarray(ImageGrab.grab(xdisplay=display))
            assert layers_in(screen) == set(COLORS)  # the person in front of it sees the same
        assert shown.press("c") == "cameras: off"
        assert layers_in(shown.picture()) == set(COLORS) - {"cameras"}
        assert shown.press("b") == "boxes: off"
        assert layers_in(shown.picture()) == {"cloud", "ground_truth"}
        assert shown.press("g") == "ground truth: off"
        assert layers_in(shown.picture()) == {"cloud"}
        assert [shown.press(key) for key in "gbc"] == ["ground truth: on", "boxes: on", "cameras: on"]
        assert (shown.picture() == everything).all()
        assert shown.press("h") == HELP
        # What is switched on after the camera was moved is seen from there.
        for step in (("mousemove", "200", "200", "mousedown", "1"), ("mousemove", "260", "215"), ("mouseup", "1")):
            shown.xdotool(*step)
            assert shown.press("h") == HELP  # one step after the other arrives: Open3D asks where the pointer is now
        moved = shown.picture()
        assert (moved != everything).any(axis=2).sum() > 1000
        assert [shown.press(key) for key in "cc"] == ["cameras: off", "cameras: on"]
        assert (shown.picture() == moved).all()
        shown.xdotool("key", "r")
        assert (shown.picture() == everything).all()
        shown.xdotool("key", "q")
        assert shown.end() == (0, "")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"sample_{i}.png" for i in range(1, 9)]


@needs_display
def test_snapshot_that_cannot_be_written_is_said_and_escape_closes(display: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with Shown(display, tmp_path / "file" / "sample.png") as shown:
        shown.xdotool("key", "s")
        assert shown.press("c") == "cameras: off"
        shown.xdotool("key", "Escape")
        code, errors = shown.end()
        assert code == 0 and errors.count("\n") == 1
        assert errors.startswith(f"error: {tmp_path}/file/sample_1.png: can't be written (")


@needs_display
def test_ctrl_c_in_the_terminal_closes_it(display: str, tmp_path: Path) -> None:
    with Shown(display, tmp_path / "sample.png") as shown:
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == (130, "interrupted\n")


CLOUD = Cloud(np.zeros((3, 3)), np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "DISPLAY is not set: leave out --window"),
        (":987", "the display :987 (DISPLAY) can't be opened: leave out --window"),
    ],
)
def test_no_display_is_one_line(
    name: str | None, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    if name:
        monkeypatch.setenv("DISPLAY", name)
    with pytest.raises(InputError, match=r"ssh -X.*xvfb-run") as error:
        show({"cloud": [CLOUD]}, title="x", snapshot=tmp_path / "x.png")
    assert message in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_nothing_to_show_is_one_line(tmp_path: Path) -> None:
    empty = Boxes(np.zeros((0, 4, 4)), np.zeros((0, 3)), (), np.zeros((0, 3), np.uint8))
    with pytest.raises(InputError, match="nothing to show"):
        show({"cloud": [Cloud(np.zeros((0, 3)), CLOUD.colors)], "boxes": [empty]}, title="x", snapshot=tmp_path / "x.png")
