"""Framing and views: K stays right through resize, crop and augmentation, checked with points and with pictures of points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapanything.datasets import views
from mapanything.datasets.views import (
    IMAGE_MEAN,
    IMAGE_STD,
    Augmentation,
    Framing,
    check_resolution,
    collate,
    make_view,
)
from mapanything.errors import InputError
from mapanything.geometry import camera
from mapanything.geometry.rigid import matrix_from_quat

K = np.array([[335.639852470912, 0, 399.5], [0, 335.639852470912, 299.5], [0, 0, 1]])
SIZES = [(518, 392), (448, 252), (518, 518), (252, 448), (1036, 784), (14, 14)]
multiples = st.integers(1, 60).map(lambda n: 14 * n)


@settings(max_examples=60)
@given(multiples, multiples, st.integers(0, 40))
def test_framing_covers_the_target_and_keeps_the_aspect(width, height, enlarge):
    framing = Framing.cover((800, 600), (width, height), K, enlarge)
    w, h = framing.resized
    assert w >= width and h >= height
    assert 0 <= framing.left <= w - width and 0 <= framing.top <= h - height
    assert abs(w / 800 - h / 600) <= 1 / 600 + 1 / 800  # one pixel of rounding
    k = framing.intrinsics(K)
    assert abs(k[0, 2] - (width - 1) / 2) <= 1 and abs(k[1, 2] - (height - 1) / 2) <= 1


@pytest.mark.parametrize("target", SIZES[:4])
@pytest.mark.parametrize("enlarge", [0, 9])
def test_a_point_in_the_framed_image_lies_where_the_framed_matrix_says(target, enlarge):
    """A picture of one bright blob is framed; the blob's centre must be at the point's new projection."""
    framing = Framing.cover((800, 600), target, K, enlarge)
    for point in ([0.7, -0.4, 3.0], [-1.0, 0.5, 4.0], [0.0, 0.0, 2.0]):
        (u, v), _ = camera.project(np.array(point), K)
        y, x = np.mgrid[:600, :800]
        blob = 250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2))
        image = np.repeat(blob[..., None], 3, axis=-1).astype(np.uint8)
        framed = framing.image(image)[0].double().numpy()
        rows, columns = np.mgrid[: framed.shape[0], : framed.shape[1]]
        centre = (columns * framed).sum() / framed.sum(), (rows * framed).sum() / framed.sum()
        expected, _ = camera.project(np.array(point), framing.intrinsics(K))
        assert np.abs(np.array(centre) - expected).max() < 0.1


@pytest.mark.parametrize("in_torch", [True, False])
def test_lanczos_is_pillows(monkeypatch, in_torch):
    if not in_torch:  # as on torch before 2.13
        monkeypatch.setattr(views, "torch_has_lanczos", lambda: False)
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    framing = Framing.cover((800, 600), (518, 392), K)
    ours = framing.image(image).permute(1, 2, 0).numpy().astype(int)
    box = (framing.left, framing.top, framing.left + 518, framing.top + 392)
    pillow = np.asarray(Image.fromarray(image).resize(framing.resized, Image.Resampling.LANCZOS).crop(box)).astype(int)
    assert np.abs(ours - pillow).max() <= 1


def slow_depth(framing: Framing, depth: np.ndarray) -> np.ndarray:
    """The framed depth map, pixel by pixel."""
    (width, height), (sx, sy) = framing.target, framing.scale
    out = np.zeros((height, width), dtype=np.float32)
    for row in range(height):
        for column in range(width):
            x = min(int((column + framing.left + 0.5) / sx), framing.source[0] - 1)
            y = min(int((row + framing.top + 0.5) / sy), framing.source[1] - 1)
            out[row, column] = depth[y, x]
    nearest = out.copy()
    if sx < 1 and sy < 1:
        for y, x in np.argwhere(depth > 0):
            column, row = int(np.floor((x + 0.5) * sx)) - framing.left, int(np.floor((y + 0.5) * sy)) - framing.top
            if 0 <= column < width and 0 <= row < height and nearest[row, column] == 0:
                known = out[row, column]
                out[row, column] = depth[y, x] if known == 0 else min(known, depth[y, x])
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.3, 1.0]), st.sampled_from([(28, 14), (42, 42), (70, 56)]))
def test_depth_equals_the_slow_way(seed, filled, target):
    rng = np.random.default_rng(seed)
    depth = np.where(rng.random((45, 60)) < filled, rng.uniform(1, 99, (45, 60)), 0).astype(np.float32)
    k = np.array([[30.0, 0, 29.5], [0, 30.0, 22.0], [0, 0, 1]])
    framing = Framing.cover((60, 45), target, k, int(rng.integers(0, 5)))
    assert np.array_equal(framing.depth(depth), slow_depth(framing, depth))


def test_sparse_depth_is_kept_where_nearest_would_drop_it():
    depth = np.zeros((600, 800), dtype=np.float32)
    points = np.random.default_rng(0).choice(480_000, 5000, replace=False)
    depth.reshape(-1)[points] = 7.0
    framing = Framing.cover((800, 600), (518, 392), K)
    assert np.count_nonzero(framing.depth(depth)) > 0.95 * 5000


def view(**changes) -> Any:
    rng = np.random.default_rng(3)
    pose = np.eye(4)
    pose[:3, :3] = matrix_from_quat(rng.normal(size=4))
    pose[:3, 3] = rng.normal(size=3)
    arguments = {
        "image": rng.integers(0, 256, (60, 80, 3), dtype=np.uint8),
        "depth": np.where(rng.random((60, 80)) < 0.6, rng.uniform(1, 50, (60, 80)), 0).astype(np.float32),
        "intrinsics": camera.resize_intrinsics(K, 0.1, 0.1),
        "world_from_camera": pose,
        "target": (56, 42),
    } | changes
    return make_view(**arguments)


@pytest.mark.parametrize("filled", [0.02, 0.6])
def test_entries_agree_with_each_other(filled):
    rng = np.random.default_rng(4)
    v = view(depth=np.where(rng.random((60, 80)) < filled, rng.uniform(1, 50, (60, 80)), 0).astype(np.float32))
    k, pose = v["camera_intrinsics"].double().numpy(), v["camera_pose"].double().numpy()
    assert np.abs(matrix_from_quat(v["camera_pose_quats"].double().numpy()) - pose[:3, :3]).max() < 1e-6
    assert v["camera_pose_quats"][3] >= 0 and torch.equal(v["camera_pose_trans"], v["camera_pose"][:3, 3])
    valid = v["valid_mask"].numpy()
    assert 0 < valid.sum() < valid.size
    cam, world = v["pts3d_cam"].double().numpy()[valid], v["pts3d"].double().numpy()[valid]
    uv, _ = camera.project(cam, k)
    rows, columns = np.nonzero(valid)
    assert np.abs(uv - np.stack([columns, rows], axis=-1)).max() < 1e-3
    assert np.abs(cam @ pose[:3, :3].T + pose[:3, 3] - world).max() < 1e-4
    assert torch.allclose(v["pts3d"][~v["valid_mask"]], v["camera_pose_trans"], atol=1e-6)
    assert np.allclose(np.linalg.norm(v["ray_directions_cam"].numpy(), axis=-1), 1, atol=1e-6)
    ray = v["ray_directions_cam"] * v["depth_along_ray"]
    assert torch.equal(ray, v["pts3d_cam"])
    assert (v["depth_along_ray"][~v["valid_mask"]] == 0).all()
    assert v["true_shape"].tolist() == [42, 56] and v["data_norm_type"] == "dinov2"


def test_image_is_normalised():
    v = view(image=np.full((60, 80, 3), 128, dtype=np.uint8))
    expected = (128 / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    assert torch.allclose(v["img"], expected[:, None, None].expand(3, 42, 56), atol=1e-5)


def points(where: tuple[int, int] = (30, 40)) -> np.ndarray:
    sparse = np.zeros((60, 80), dtype=np.float32)
    sparse[where] = 5
    return sparse


def surface() -> np.ndarray:
    dense = np.full((60, 80), 9.0, dtype=np.float32)
    dense[:20] = 0
    return dense


def test_what_a_rendered_map_does_not_know_is_sky():
    for v in (view(depth=surface()), view(depth=surface(), rendered=True), view(depth=surface(), mask_reach=0.05)):
        assert torch.equal(v["non_ambiguous_mask"], v["valid_mask"]) and not v["valid_mask"].all()
        assert v["mask_known"].all() and v["is_synthetic"] is True
    sky = view(depth=surface() * 0, rendered=True)
    assert not sky["non_ambiguous_mask"].any() and sky["mask_known"].all()


def test_a_lidar_teaches_a_surface_at_its_labels_and_nothing_elsewhere():
    for v in (view(depth=points()), view(depth=points(), rendered=False), view(depth=surface(), rendered=False)):
        assert torch.equal(v["mask_known"], v["valid_mask"]) and torch.equal(v["non_ambiguous_mask"], v["valid_mask"])
        assert v["valid_mask"].any() and v["is_synthetic"] is False
    for v in (view(depth=points() * 0), view(depth=None), view(depth=None, rendered=True)):
        assert not v["mask_known"].any() and not v["valid_mask"].any()


def test_lines_of_a_lidar_are_no_dense_map_in_small_images():
    """Made small, they touch: at 168x126 they fill a quarter of a real image and more."""
    lines = np.zeros((600, 800), dtype=np.float32)
    lines[300::8] = 9
    small = view(image=np.zeros((600, 800, 3), dtype=np.uint8), depth=lines, intrinsics=K, target=(84, 56))
    assert small["valid_mask"].float().mean() > 0.25 and not small["mask_known"].all() and not small["is_synthetic"]


def test_what_a_lidar_does_not_reach_may_count_as_sky():
    known = view(depth=points())["valid_mask"].nonzero()[0]
    for reach, pixels in ((0.0, 0), (0.05, 3), (1.0, 56)):
        v = view(depth=points(), mask_reach=reach)
        distance = (torch.stack(torch.meshgrid(torch.arange(42), torch.arange(56), indexing="ij"), -1) - known).abs().amax(-1)
        assert torch.equal(v["non_ambiguous_mask"], distance <= pixels) and v["mask_known"].all()
    assert not view(depth=points() * 0, mask_reach=0.05)["non_ambiguous_mask"].any()


def test_views_share_no_memory():
    a, b = view(), view()
    a["ray_directions_cam"].zero_()
    assert b["ray_directions_cam"].any()


def test_augmentation_is_decided_by_the_generator_alone():
    augment = Augmentation()
    torch.manual_seed(1)
    first = view(augment=augment, rng=np.random.default_rng(7))
    torch.manual_seed(2)
    second = view(augment=augment, rng=np.random.default_rng(7))
    assert torch.equal(first["img"], second["img"])
    others = [view(augment=augment, rng=np.random.default_rng(seed))["img"] for seed in range(4)]
    assert not all(torch.equal(first["img"], other) for other in others)


def test_augmentation_changes_colours_by_bounded_amounts():
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(60, 190, (3, 20, 30))).float()
    off = Augmentation(jitter_prob=0, grey_prob=0, blur_prob=0)
    assert torch.equal(off.colours(pixels, np.random.default_rng(0)), pixels)
    grey = Augmentation(jitter_prob=0, grey_prob=1, blur_prob=0).colours(pixels, np.random.default_rng(0))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(grey[0], (pixels * weights[:, None, None]).sum(0), atol=1e-3)
    blurred = Augmentation(jitter_prob=0, grey_prob=0, blur_prob=1).colours(pixels, np.random.default_rng(0))
    assert blurred.std() < pixels.std() and abs(float(blurred.mean() - pixels.mean())) < 1
    only_brighter = Augmentation(contrast=0, saturation=0, hue=0, jitter_prob=1, grey_prob=0, blur_prob=0)
    ratios = {round(float((only_brighter.colours(pixels, np.random.default_rng(s)) / pixels).median()), 4) for s in range(20)}
    assert len(ratios) > 10 and min(ratios) >= 0.69 and max(ratios) <= 1.31


def test_hue_leaves_grey_grey_and_keeps_luma():
    matrix = Augmentation._matrix(np.ones(3), 0.1, np.array([3]), 0.0)
    assert np.abs(matrix @ [100, 100, 100, 1] - 100).max() < 1e-9
    colour = np.array([200.0, 50, 20, 1])
    assert abs((matrix @ colour - colour[:3]) @ [0.299, 0.587, 0.114]) < 1e-9
    assert np.abs(matrix @ colour - colour[:3]).max() > 20


def test_collate_stacks_tensors_and_lists_strings():
    sample = [view() | {"agent": "641", "is_metric_scale": True}, view() | {"agent": "650", "is_metric_scale": True}]
    batch = collate([sample, sample, sample])
    assert len(batch) == 2 and batch[0]["img"].shape == (3, 3, 42, 56)
    assert batch[1]["agent"] == ["650"] * 3 and batch[0]["data_norm_type"] == ["dinov2"] * 3
    assert torch.equal(torch.as_tensor(batch[0]["is_metric_scale"]), torch.tensor([True] * 3))
    with pytest.raises(ValueError, match="number"):
        collate([sample, sample[:1]])


@pytest.mark.parametrize("bad", [(518, 390), (0, 14), (518,), (-14, 14), (518.0, 392)])
def test_resolutions_the_network_cannot_take(bad):
    with pytest.raises(InputError, match="multiples of 14"):
        check_resolution(bad)
