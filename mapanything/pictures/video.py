"""Pictures one after the other into a GIF, an MP4 or a folder of PNGs, in constant memory, whole or not at all.

Notable:
- Pillow keeps all frames of a GIF until the last one is there. Here every frame is made a GIF of its own by Pillow, and
  its image block, with its own colour table, goes straight into the file (GIF89a specification, sections 18 to 27).
- All pictures get the size of the first one: a larger one is cut at the right and below, a smaller one padded.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.files import open_atomic
from mapanything.pictures.render import write_png

SUFFIXES = (".gif", ".mp4")
Image3 = NDArray[np.uint8]
Add = Callable[[Image3, str], None]


@contextmanager
def open_sequence(path: Path, fps: float) -> Iterator[Add]:
    """Gives a function that takes one picture (H, W, 3) after the other, and a name for each.

    Args:
        path: ends in .gif or .mp4; anything else is a folder, where each picture becomes `{name}.png`.
        fps: pictures per second; a GIF counts in hundredths of a second.

    Raises:
        InputError: the place can't be written to.
    """
    writer = {".gif": _gif, ".mp4": _mp4}.get(path.suffix.lower())
    if writer is None:
        yield lambda image, name: write_png(path / f"{name}.png", image)
        return
    size: list[int] = []
    with open_atomic(path) as file, writer(file, fps) as add_one:

        def add(image: Image3, name: str) -> None:
            if not size:
                size.extend(image.shape[:2])
            add_one(_fitted(image, *size))

        yield add


def _fitted(image: Image3, height: int, width: int) -> Image3:
    image = image[:height, :width]
    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, missing, mode="edge") if any(after for _, after in missing) else image


@contextmanager
def _gif(file: IO[bytes], fps: float) -> Iterator[Callable[[Image3], None]]:
    delay = max(2, round(100 / fps))  # browsers take less for a mistake, and for 10
    started = False

    def add(image: Image3) -> None:
        nonlocal started
        height, width = image.shape[:2]
        if not started:
            file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))  # no colour table for all
            file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # for ever
            started = True
        file.write(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 0, delay, 0, 0))
        file.write(_gif_image_block(image))

    yield add
    if started:
        file.write(b"\x3b")


def _gif_image_block(image: Image3) -> bytes:
    """The picture as an image descriptor, a local colour table and its data."""
    colors = Image.fromarray(image).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    colors.save(buffer, format="GIF", interlace=False)
    data = buffer.getvalue()
    flags = data[10]
    bits = (flags & 7) + 1
    table = data[13 : 13 + 3 * 2**bits]
    place = 13 + len(table)
    while data[place] == 0x21:  # extensions: sub-blocks, each with its length, up to one of length 0
        place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
    descriptor = data[place : place + 9]
    return descriptor + bytes([0x80 | (bits - 1)]) + table + data[place + 10 : -1]


@contextmanager
def _mp4(file: IO[bytes], fps: float) -> Iterator[Callable[[Image3], None]]:
    """H.264 in 4:2:0, which every player knows; quality before size."""
    import av

    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"

        def add(image: Image3) -> None:
            height, width = (side + side % 2 for side in image.shape[:2])  # 4:2:0 has pairs of rows and columns
            if not stream.width or stream.width != width:
                stream.width, stream.height = width, height
            for packet in stream.encode(av.VideoFrame.from_ndarray(_fitted(image, height, width), format="rgb24")):
                container.mux(packet)

        yield add
        for packet in stream.encode():
            container.mux(packet)
