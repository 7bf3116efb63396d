"""Images to views: sizes and pixels against Pillow, cameras against blobs and by hand, and one line for whatever is wrong."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapanything.datasets.views import IMAGE_MEAN, IMAGE_STD
from mapanything.errors import InputError
from mapanything.geometry import camera
from mapanything.geometry.rigid import matrix_from_quat
from mapanything.inference.images import MAPPING_518, centred, load_images, preprocess_inputs, target_size
from mapanything.inference.pixels import demosaic

K = np.array([[240.0, 0, 161.3], [0, 236.0, 112.8], [0, 0, 1]])


def photo(width=320, height=240, seed=0) -> np.ndarray:
    """A smooth picture with detail, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def pixels(view) -> np.ndarray:
    """The image of a view, (H, W, 3) in 0..255."""
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    return ((view["img"][0] * std + mean) * 255).permute(1, 2, 0).numpy()


def slow_framing(size, target):
    """docs/network.md §6.5: scale = max(target / size) + 1e-8, rounded down; and the margins that are cropped away."""
    scale = max(target[0] / size[0], target[1] / size[1]) + 1e-8
    resized = math.floor(size[0] * scale), math.floor(size[1] * scale)
    return resized, (resized[0] - target[0], resized[1] - target[1])


# Sizes


@given(st.floats(0.2, 5))
def test_mapping_takes_the_nearest_ratio(ratio):
    target = target_size(ratio, "fixed_mapping", None, 14, 518)
    key = next(key for key, value in MAPPING_518.items() if value == target)
    assert abs(key - ratio) == min(abs(other - ratio) for other in MAPPING_518)
    assert max(target) == 518 and target[0] % 14 == target[1] % 14 == 0


def test_keys_of_the_mapping_are_its_ratios():
    assert all(abs(key - w / h) < 6e-4 for key, (w, h) in MAPPING_518.items())


@pytest.mark.parametrize(
    ("mode", "size", "ratio", "expected"),
    [
        ("longest_side", 520, 4 / 3, (518, 392)),  # 37 patches, 37 / (4/3) = 27.75
        ("longest_side", 520, 3 / 4, (392, 518)),
        ("longest_side", 224, 1.0, (224, 224)),
        ("longest_side", 28, 9.0, (28, 14)),
        ("square", 300, 2.0, (294, 294)),
        ("fixed_size", (450, 260), 1.0, (448, 252)),
    ],
)
def test_sizes_of_the_other_modes(mode, size, ratio, expected):
    assert target_size(ratio, mode, size, 14, 518) == expected


@given(st.floats(0.1, 10), st.integers(14, 2000), st.sampled_from(["longest_side", "square"]))
def test_all_sides_are_whole_patches(ratio, size, mode):
    width, height = target_size(ratio, mode, size, 14, 518)
    assert width % 14 == height % 14 == 0 and min(width, height) >= 14 and max(width, height) == size // 14 * 14
    if mode == "longest_side" and min(width, height) > 14:
        assert abs(min(width, height) - max(width, height) * min(ratio, 1 / ratio)) <= 7 + 1e-6


def test_all_views_get_the_size_of_the_mean_ratio(tmp_path):
    sizes = [(320, 240), (320, 240), (160, 240)]  # mean 1.111
    for i, (w, h) in enumerate(sizes):
        Image.fromarray(photo(w, h)).save(tmp_path / f"{i}.png")
    views = load_images(tmp_path)
    assert [tuple(view["img"].shape) for view in views] == [(1, 3, 518, 518)] * 3
    assert views[0]["true_shape"].tolist() == [[518, 518]] and views[0]["data_norm_type"] == ["dinov2"]
    assert [(view["idx"], view["instance"]) for view in views] == [(0, "0"), (1, "1"), (2, "2")]
    assert [view["idx"] for view in load_images(tmp_path, stride=2)] == [0, 1]
    assert load_images([tmp_path / "2.png"])[0]["img"].shape == (1, 3, 518, 336)


# Pixels


@settings(max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(list(MAPPING_518.values())), st.booleans())
def test_framing_is_the_specifications(width, height, target, with_camera):
    framing = centred((width, height), target, with_camera)
    resized, margins = slow_framing((width, height), target)
    assert framing.resized == resized
    for offset, margin in zip((framing.left, framing.top), margins, strict=True):
        assert 0 <= offset <= margin and abs(offset - margin / 2) <= 0.5


@pytest.mark.parametrize("size", [(800, 600), (333, 250), (123, 457), (600, 150), (518, 392)])
def test_pixels_are_pillows(size):
    source = photo(*size)
    (view,) = preprocess_inputs([{"img": source}])
    height, width = view["true_shape"][0].tolist()
    resized, margins = slow_framing(size, (width, height))
    kernel = Image.Resampling.LANCZOS if resized[0] < size[0] else Image.Resampling.BICUBIC
    left, top = margins[0] // 2, margins[1] // 2
    expected = np.asarray(Image.fromarray(source).resize(resized, kernel).crop((left, top, left + width, top + height)))
    difference = np.abs(pixels(view) - expected)
    assert difference.max() <= 2.01 and difference.mean() < 0.02  # another kernel: 0.4 in the mean


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 400), st.integers(8, 400), st.integers(14, 200), st.integers(14, 200))
def test_any_size_becomes_any_size(width, height, to_width, to_height):
    grey = {
        "img": np.full((height, width, 3), 77, np.uint8),
        "depth_z": np.full((height, width), 3.0),
        "intrinsics": np.eye(3),
    }
    (view,) = preprocess_inputs([grey], resize_mode="fixed_size", size=(to_width, to_height))
    height, width = to_height // 14 * 14, to_width // 14 * 14
    assert view["img"].shape == (1, 3, height, width) and view["depth_z"].shape == (1, height, width)
    assert np.abs(pixels(view) - 77).max() < 0.01 and (view["depth_z"] == 3).all()


def test_whatever_holds_the_same_image_gives_the_same_view(tmp_path):
    source = photo(90, 70)
    Image.fromarray(source).save(tmp_path / "photo.png")
    expected = preprocess_inputs([{"img": source}])[0]["img"]
    frozen = source.copy()
    frozen.flags.writeable = False
    same = [
        torch.from_numpy(source.copy()),
        source.astype(np.float32),
        source.astype(np.float64) / 255,
        torch.from_numpy(source.copy()).double() / 255,
        torch.from_numpy(source.copy()).to(torch.bfloat16),  # 8 bits of mantissa hold 0..255
        source.astype(np.int64),
        Image.fromarray(source),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        frozen,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in same:
            (view,) = preprocess_inputs([{"img": image}])
            assert torch.equal(view["img"], expected), type(image)
        assert torch.equal(load_images([tmp_path / "photo.png"])[0]["img"], expected)
    assert np.array_equal(source, photo(90, 70))


def test_a_float_image_that_overshoots_one_is_not_black():
    image = photo(90, 70).astype(np.float32) / 255
    image[0, 0], image[1, 1] = 1.04, -0.03
    assert pixels(preprocess_inputs([{"img": image}])[0]).mean() > 50


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    upright = np.asarray(Image.fromarray(photo(16, 12)).resize((112, 84)))  # smooth, for JPEG's sake
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif, quality=100)
    (view,) = load_images([path], resize_mode="fixed_size", size=(112, 84))
    assert np.abs(pixels(view) - upright).mean() < 5
    assert load_images([path])[0]["true_shape"].tolist() == [[392, 518]]


def test_grey_palette_and_transparent_files(tmp_path):
    source = photo(112, 84)
    picture = Image.fromarray(source)
    grey = np.asarray(picture.convert("L")).astype(int)
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "grey16.png")
    options = {"resize_mode": "fixed_size", "size": (112, 84)}
    for name, expected in [("grey", grey[..., None]), ("grey16", grey[..., None]), ("rgba", source)]:
        assert np.abs(pixels(load_images([tmp_path / f"{name}.png"], **options)[0]) - expected).max() < 0.1


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_bayer_gives_rgb(tmp_path, pattern):
    colour = np.array([200, 120, 40], dtype=np.uint8)
    raw = np.zeros((84, 112), dtype=np.uint8)
    for row in range(84):
        for column in range(112):
            raw[row, column] = colour["RGB".index(pattern[2 * (row % 2) + column % 2])]
    assert (demosaic(raw, pattern) == colour).all()
    for name, mosaic in [("8", raw), ("16", raw.astype(np.uint16) * 257)]:
        Image.fromarray(mosaic).save(tmp_path / f"{name}.png")
        (view,) = load_images([tmp_path / f"{name}.png"], bayer_format=pattern.lower())
        assert np.abs(pixels(view) - colour).max() < 0.1
    if pattern == "RGGB":
        assert torch.equal(load_images([tmp_path / "16.png"], bayer_format=True)[0]["img"], view["img"])


def test_demosaic_is_bilinear():
    raw = np.random.default_rng(0).integers(0, 256, (8, 10), dtype=np.uint8)
    rgb = demosaic(raw, "RGGB").astype(int)
    assert rgb[2, 4, 0] == raw[2, 4] and rgb[3, 5, 2] == raw[3, 5] and rgb[2, 5, 1] == raw[2, 5]
    r = raw.astype(float)
    assert rgb[2, 4, 1] == round((r[1, 4] + r[3, 4] + r[2, 3] + r[2, 5]) / 4)
    assert rgb[2, 4, 2] == round((r[1, 3] + r[1, 5] + r[3, 3] + r[3, 5]) / 4)
    assert rgb[2, 5, 0] == round((r[2, 4] + r[2, 6]) / 2) and rgb[3, 4, 0] == round((r[2, 4] + r[4, 4]) / 2)


# Cameras and depth


def test_intrinsics_by_hand():
    (view,) = preprocess_inputs([{"img": photo(800, 600), "intrinsics": [[400, 0, 410], [0, 420, 290], [0, 0, 1]]}])
    # 800x600 -> scale 0.65333 -> 522x392 -> 2 columns cut off on either side.
    sx, sy = 522 / 800, 392 / 600
    expected = [[400 * sx, 0, 410.5 * sx - 0.5 - 2], [0, 420 * sy, 290.5 * sy - 0.5], [0, 0, 1]]
    assert torch.allclose(view["intrinsics"], torch.tensor([expected]), atol=1e-4)


@pytest.mark.parametrize(("mode", "size"), [("fixed_mapping", None), ("square", 224), ("fixed_size", (140, 252))])
def test_a_point_stays_on_its_image_content(mode, size):
    """A blob is painted where a point projects; in the view it must be where the view's camera projects the point."""
    for point in ([0.0, 0.0, 2.0], [0.25, -0.3, 2.0], [-0.2, 0.35, 2.0]):
        (u, v), z = camera.project(np.array(point), K)
        y, x = np.mgrid[:240, :320]
        blob = 250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2))
        image = np.repeat(blob[..., None], 3, axis=-1).astype(np.uint8)
        depth = np.where(blob > 125, z, 0)
        (view,) = preprocess_inputs([{"img": image, "intrinsics": K, "depth_z": depth}], resize_mode=mode, size=size)
        expected, _ = camera.project(np.array(point), view["intrinsics"][0].double().numpy())
        for shown, tolerance in [(pixels(view)[..., 0].clip(0), 0.1), ((view["depth_z"][0] > 0).numpy(), 0.5)]:
            rows, columns = np.mgrid[: shown.shape[0], : shown.shape[1]]
            centre = (columns * shown).sum() / shown.sum(), (rows * shown).sum() / shown.sum()
            assert np.abs(np.array(centre) - expected).max() < tolerance


@pytest.mark.parametrize("size", [(320, 240), (64, 48), (1250, 820)])
def test_rays_are_a_camera(size):
    k = camera.resize_intrinsics(K, size[0] / 320, size[1] / 240)
    rays = camera.rays(k, size[1], size[0])
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    image = photo(*size)
    (expected,) = preprocess_inputs([{"img": image, "intrinsics": k}])
    for given_rays in (rays, torch.from_numpy(unit).float()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (view,) = preprocess_inputs([{"img": image, "ray_directions": given_rays}])
        assert "ray_directions" not in view
        assert torch.allclose(view["intrinsics"], expected["intrinsics"], rtol=1e-5, atol=1e-3)


def test_rays_of_no_pinhole_are_fitted_and_said():
    rays = camera.rays(K, 240, 320)
    rays[..., :2] *= 1 + 0.2 * (rays[..., :2] ** 2).sum(-1, keepdims=True)
    with pytest.warns(UserWarning, match=r"view 0: ray_directions are off a pinhole camera's by up to [\d.]+ px"):
        preprocess_inputs([{"img": photo(), "ray_directions": rays}])


def test_depth_is_nearest_and_holes_stay_unknown():
    depth = np.full((240, 320), 4.0)
    depth[:100] = 9.0
    depth[150:] = [np.nan, -1, np.inf, 0] * 80
    (view,) = preprocess_inputs([{"img": photo(), "intrinsics": K, "depth_z": depth[..., None]}])
    z = view["depth_z"]
    assert z.dtype == torch.float32 and set(z.unique().tolist()) == {0, 4, 9}
    rows = z[0, :, 0]
    assert abs(int((rows == 9).sum()) / 392 - 100 / 240) < 2 / 392 and (rows[250:] == 0).all()


def test_poses_flags_and_names_get_a_batch_axis():
    pose = np.eye(4)
    pose[:3, :3] = matrix_from_quat(np.array([0.1, 0.2, -0.3, 0.9]))
    pose[:3, 3] = 1, 2, 3
    views = [
        {"img": photo(), "camera_poses": pose, "is_metric_scale": True, "idx": 7, "instance": "a", "agent_id": 2},
        {
            "img": photo(),
            "camera_poses": (np.array([0, 0, 0, 1.0]), torch.zeros(3)),
            "is_metric_scale": torch.tensor([False]),
            "depth_z": None,
        },
    ]
    first, second = preprocess_inputs(views)
    assert torch.equal(first["camera_poses"], torch.from_numpy(pose).float()[None])
    assert [part.tolist() for part in second["camera_poses"]] == [[[0, 0, 0, 1]], [[0, 0, 0]]]
    assert first["is_metric_scale"].tolist() == [True] and second["is_metric_scale"].tolist() == [False]
    assert (first["idx"], first["instance"]) == (7, "a") and "idx" not in second
    known = {"img", "data_norm_type", "true_shape", "camera_poses", "is_metric_scale"}
    assert set(first) == known | {"idx", "instance", "agent_id"} and set(second) == known
    assert first["agent_id"].tolist() == [2]


# What is wrong


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"img": None}, "view 1: img is missing"),
        ({"image": 1}, "view 1: unknown key image"),
        ({"img": np.zeros((3, 70, 90))}, r"view 1: img has shape \(3, 70, 90\)"),
        ({"img": np.zeros((70, 90, 3), dtype=complex)}, "view 1: img holds complex"),
        ({"img": np.full((70, 90, 3), np.nan)}, "view 1: img has NaN"),
        ({"img": np.linspace(-2, 2.6, 70 * 90 * 3).reshape(70, 90, 3)}, "view 1: img ranges from -2 to 2.6"),
        ({"img": np.full((70, 90, 3), 4000, dtype=np.uint16)}, "view 1: img ranges"),
        ({"img": "nowhere.png"}, "nowhere.png: No such file"),
        ({"depth_z": np.ones((70, 90))}, "view 1: depth_z needs intrinsics or ray_directions"),
        ({"depth_z": np.ones((90, 70)), "intrinsics": K}, r"view 1: depth_z has shape \(90, 70\)"),
        ({"depth_z": [[1, 2], [3]], "intrinsics": K}, "view 1: depth_z: is no array"),
        ({"intrinsics": K, "ray_directions": np.ones((70, 90, 3))}, "view 1: give intrinsics or ray_directions, not both"),
        ({"intrinsics": K[None]}, r"view 1: intrinsics has shape \(1, 3, 3\)"),
        ({"intrinsics": K * [[1], [1], [0]]}, "view 1: intrinsics is no camera matrix"),
        ({"intrinsics": np.full((3, 3), np.inf)}, "view 1: intrinsics: has NaN or infinite"),
        ({"ray_directions": np.ones((9, 9, 3))}, r"view 1: ray_directions has shape \(9, 9, 3\)"),
        ({"ray_directions": -camera.rays(K, 70, 90)}, "view 1: ray_directions must look forward"),
        ({"ray_directions": np.ones((70, 90, 3))}, "view 1: ray_directions do not spread"),
        ({"camera_poses": np.eye(3)}, r"view 1: camera_poses: has shape \(3, 3\)"),
        ({"camera_poses": 2 * np.eye(4)}, "view 1: camera_poses: is no rigid"),
        ({"camera_poses": (np.zeros(4), np.zeros(3))}, "view 1: camera_poses: the quaternion is zero"),
        ({"camera_poses": (np.zeros(3), np.zeros(4))}, "view 1: camera_poses: shapes"),
        ({"camera_poses": "world"}, "view 1: camera_poses: holds <U5, no numbers"),
        ({"is_metric_scale": [True, False]}, "view 1: is_metric_scale must be one bool"),
        ({"agent_id": 0.5}, "view 1: agent_id must be one whole number"),
        ({"data_norm_type": ["croco"]}, "view 1: data_norm_type"),
    ],
)
def test_bad_views_are_named(wrong, says):
    good = {"img": photo(90, 70)}
    with pytest.raises(InputError, match=says) as error:
        preprocess_inputs([good, good | wrong])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resize_mode": "crop"}, "resize_mode='crop': give one of fixed_mapping"),
        ({"resolution_set": 512}, "resolution_set=512: there is 518"),
        ({"patch_size": 16}, "patch_size=16"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"norm_type": "dust3r"}, "norm_type='dust3r'.*dinov2"),
        ({"resize_mode": "square"}, "size=None: resize_mode=square needs one number"),
        ({"resize_mode": "square", "size": 13}, "size=13"),
        ({"resize_mode": "longest_side", "size": (518, 392)}, "needs one number"),
        ({"resize_mode": "fixed_size", "size": 518}, r"needs \(width, height\)"),
        ({"resize_mode": "fixed_size", "size": (518, 392.0)}, "whole"),
        ({"stride": 0}, "stride=0"),
        ({"bayer_format": "RGB"}, "bayer_format='RGB': give one of RGGB"),
    ],
)
def test_bad_options_are_named(tmp_path, options, says):
    Image.fromarray(photo(90, 70)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=says):
        load_images(tmp_path, **options)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: No such file"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path)
    for empty in ([], ()):
        with pytest.raises(InputError, match="at least one"):
            load_images(empty)
    with pytest.raises(InputError, match="at least one"):
        preprocess_inputs([])
    buffer = io.BytesIO()
    Image.fromarray(photo(90, 70)).save(buffer, "PNG")
    for content in (b"", b"no image", buffer.getvalue()[:-300]):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.png: "):
            load_images(tmp_path)
    (tmp_path / "bad.png").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="no raw mosaic"):
        load_images(tmp_path, bayer_format="RGGB")
