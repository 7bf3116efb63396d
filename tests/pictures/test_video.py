"""GIFs and MP4s that other programs read, frame by frame; nothing left behind when it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from mapanything.errors import InputError
from mapanything.pictures.video import open_sequence


def frames(count: int = 5, width: int = 121, height: int = 83) -> list[np.ndarray]:
    """Few colours, so that a GIF's 256 hold them; a bar that moves."""
    out = []
    for i in range(count):
        image = np.full((height, width, 3), (16, 21, 28), np.uint8)
        image[:, 10 * i : 10 * i + 10] = (255, 145, 0)
        image[40:50] = (0, 229, 255)
        out.append(image)
    return out


def write(path: Path, images: list[np.ndarray], fps: float = 5.0) -> None:
    with open_sequence(path, fps) as add:
        for i, image in enumerate(images):
            add(image, f"{i:06d}")


def test_gif_comes_back_frame_by_frame(tmp_path: Path):
    write(tmp_path / "new" / "a.gif", frames())
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 5 and gif.size == (121, 83) and gif.info["loop"] == 0
        for i, want in enumerate(frames()):
            gif.seek(i)
            assert gif.info["duration"] == 200
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - want).max() <= 8
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.gif"]


def test_mp4_comes_back_frame_by_frame(tmp_path: Path):
    import av

    write(tmp_path / "a.mp4", frames(), fps=2.5)
    with av.open(tmp_path / "a.mp4") as video:
        stream = video.streams.video[0]
        assert stream.average_rate == 2.5 and stream.codec_context.pix_fmt == "yuv420p"
        got = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(got) == 5 and got[0].shape == (84, 122, 3)  # padded to pairs
    for image, want in zip(got, frames()):
        assert np.abs(image[:83, :121].astype(int) - want).mean() < 12


def test_folder_of_pngs(tmp_path: Path):
    write(tmp_path / "folder", frames(3))
    names = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert (np.asarray(Image.open(tmp_path / "folder" / names[1])) == frames()[1]).all()


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_pictures_of_other_sizes_are_cut_and_padded(suffix: str, tmp_path: Path):
    images = [frames()[0], frames(1, 200, 90)[0], frames(1, 60, 40)[0]]
    write(tmp_path / f"a.{suffix}", images)
    assert (tmp_path / f"a.{suffix}").stat().st_size > 500


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_what_fails_leaves_nothing_and_keeps_the_old_file(suffix: str, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    path.write_text("old")

    def stop_early() -> None:
        with open_sequence(path, 5) as add:
            add(frames()[0], "0")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_early()
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="can't be written"):
        write(path / f"b.{suffix}", frames())


def test_a_gif_does_not_keep_its_frames(tmp_path: Path):
    import tracemalloc

    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    with open_sequence(tmp_path / "a.gif", 5) as add:
        add(image, "0")
        tracemalloc.start()
        for i in range(20):
            add(image, str(i))
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert grown < image.nbytes  # one frame of 21 at most
