"""Images and depth maps: the fast decoder against Pillow, every stored format, and what is broken is said."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapanything.arrays import npy_header
from mapanything.errors import InputError
from mapanything.opv2v import png
from mapanything.opv2v.depth import clean_depth, is_dense, read_depth, write_depth_npy, write_depth_png
from tests.helpers.file_bytes import png_of

PATH = Path("i.png")


def encode(pixels: np.ndarray, filters: list[int], parts: int = 1) -> bytes:
    """A PNG of (H, W, 3) uint8 whose row r is filtered by filters[r] (0 none, 1 sub, 2 up), its data in `parts` chunks."""
    rows = pixels.reshape(len(pixels), -1).astype(np.int16)
    lines = []
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(3, np.int16), row[:-3]])
        above = rows[number - 1] if number else np.zeros_like(row)
        filtered = {0: row, 1: row - left, 2: row - above}[filters[number]]
        lines.append(bytes([filters[number]]) + (filtered % 256).astype(np.uint8).tobytes())
    data = zlib.compress(b"".join(lines))
    step = -(-len(data) // parts)
    chunks = [(b"IDAT", data[i : i + step]) for i in range(0, len(data), step)]
    head = pixels.shape[1].to_bytes(4, "big") + pixels.shape[0].to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return png.SIGNATURE + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in [(b"IHDR", head), *chunks, (b"IEND", b"")]
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_fast_decoder_and_pillow_agree(seed, width, height, parts, only_sub):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    filters = [1] * height if only_sub else rng.integers(0, 3, height).tolist()
    data = encode(pixels, filters, parts)
    assert np.array_equal(png.decode_rgb(data, PATH), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert (png._decode_sub_filtered(data, png.png_info(data, PATH)) is not None) == (set(filters) == {1})
    assert png.check_png(data, PATH).width == width


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_kinds_of_png_are_read_as_pillow_reads_them(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "i.png")
    read = png.read_image(tmp_path / "i.png")
    assert np.array_equal(read, np.asarray(Image.open(tmp_path / "i.png").convert("RGB")))
    assert read.flags.writeable  # torch warns of what is not


def test_16_bits_of_grey_are_scaled_not_cut(tmp_path):
    values = np.array([[0, 128, 257 * 7, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "i.png")
    read = png.read_image(tmp_path / "i.png")
    assert read[0, :, 0].tolist() == [0, 0, 7, 156, 255] and (read == read[..., :1]).all()
    assert read.flags.writeable


def test_an_image_too_large_is_said_to_be(tmp_path):
    (tmp_path / "i.png").write_bytes(png_of(60000, 60000, b""))
    with pytest.raises(InputError, match=r"is 60000x60000, over 100 million pixels: too large"):
        png.read_image(tmp_path / "i.png")


@pytest.mark.real
def test_real_images_take_the_fast_way_and_equal_pillow(real_root):
    paths = sorted(real_root.rglob("*.png"))
    assert len(paths) == 8
    for path in paths:
        data = path.read_bytes()
        fast = png._decode_sub_filtered(data, png.check_png(data, path))
        assert fast is not None and np.array_equal(fast, np.asarray(Image.open(path).convert("RGB")))


def test_a_png_cut_or_changed_anywhere_is_said_to_be():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    data = encode(pixels, [1] * 9)
    for size in range(len(data)):
        with pytest.raises(InputError, match=r"i\.png"):
            png.check_png(data[:size], PATH)
    for place in range(8, len(data)):
        broken = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        with pytest.raises(InputError, match=r"i\.png"):
            png.check_png(broken, PATH)


def test_damaged_pixels_are_not_passed_on():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encode(pixels, [1] * 40)
    start = data.index(b"IDAT") + 4
    for place in range(start, len(data) - 16, 97):
        broken = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        try:
            decoded = png.decode_rgb(broken, PATH)
        except InputError:
            continue
        assert np.array_equal(decoded, pixels)


def test_images_that_are_none(tmp_path):
    for content, message in [(b"", "empty"), (b"hello", "decoded"), (png.SIGNATURE + b"x" * 50, "no PNG")]:
        (tmp_path / "i.png").write_bytes(content)
        with pytest.raises(InputError, match=message):
            png.read_image(tmp_path / "i.png")
    with pytest.raises(InputError, match="No such file"):
        png.read_image(tmp_path / "other.png")
    with pytest.raises(InputError):
        png.read_image(tmp_path)


depth_maps = st.integers(0, 2**32 - 1).map(
    lambda seed: np.where(
        np.random.default_rng(seed).random((7, 9)) < 0.5, np.random.default_rng(seed + 1).uniform(0.1, 255, (7, 9)), 0
    ).astype(np.float32)
)


@settings(max_examples=30)
@given(depth_maps)
def test_depth_comes_back(tmp_path_factory, depth):
    folder = tmp_path_factory.mktemp("depth")
    write_depth_npy(folder / "d.npy", depth)
    write_depth_png(folder / "d.png", depth)
    assert np.array_equal(read_depth(folder / "d.npy"), depth)
    assert np.abs(read_depth(folder / "d.png") - depth).max() <= 0.5 / 256 + 1e-6


def test_depth_beyond_the_png_is_unknown_not_wrong(tmp_path):
    write_depth_png(tmp_path / "d.png", np.array([[255.9, 256.0, 999.0, np.inf, np.nan, -1.0]], np.float32))
    read = read_depth(tmp_path / "d.png")
    assert abs(read[0, 0] - 255.9) < 0.003 and (read[0, 1:] == 0).all()


def test_other_stored_kinds_of_depth(tmp_path):
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "h.png")  # OPV2V-H: whole metres, 255 is "beyond"
    assert read_depth(tmp_path / "h.png").tolist() == [[0, 7, 0]]
    for values in (np.ones((2, 3, 1)), np.ones((2, 3), np.float16), np.ones((2, 3), np.uint16)):
        np.save(tmp_path / "d.npy", values)
        read = read_depth(tmp_path / "d.npy")
        assert read.dtype == np.float32 and read.shape == (2, 3) and (read == 1).all()


def test_clean_depth_keeps_only_what_can_be_a_distance():
    raw = np.array([[np.nan, np.inf, -np.inf, -1, 0, 0.5, 999, 1000, 1e9]], np.float32)
    assert clean_depth(raw).tolist() == [[0, 0, 0, 0, 0, 0.5, 999, 0, 0]]


def test_depth_files_that_are_none(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.ones((4, 5), np.float32))
    whole = path.read_bytes()
    for content in (b"", b"\x93NUMPY", whole[:60], whole[:-4], whole + b"more", b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"d\.npy"):
            npy_header(path)
        with pytest.raises(InputError, match=r"d\.npy"):
            read_depth(path)
    for values in (np.ones(5), np.ones((2, 3, 3)), np.array([["a"]]), np.ones((2, 2), complex)):
        np.save(path, values)
        with pytest.raises(InputError, match=r"d\.npy"):
            read_depth(path)


def test_pickled_arrays_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    np.save(tmp_path / "d.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"d\.npy"):
        read_depth(tmp_path / "d.npy")
    assert not (tmp_path / "pwned").exists()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.npy"
    write_depth_npy(path, np.ones((2, 2), np.float32))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_depth_npy(path, np.zeros((2, 2), np.float32))
    assert read_depth(path).all() and [p.name for p in tmp_path.iterdir()] == ["d.npy"]


def test_a_dense_map_is_one_however_little_of_it_is_known():
    rendered = np.zeros((60, 100), np.float32)
    rendered[52:, :40] = 9  # 5% of the pixels
    lines = np.zeros((60, 100), np.float32)
    lines[::3] = 9  # 33%
    assert is_dense(rendered) and not is_dense(lines) and not is_dense(rendered * 0)
    assert is_dense(np.full((60, 100), 9, np.float32)) and not is_dense(np.full((1, 100), 9, np.float32))
