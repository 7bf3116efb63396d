"""SE(3) and quaternions, NumPy and torch, against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mapanything.geometry import rigid

quats = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 1e-3)


def random_poses(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.zeros((*shape, 4, 4))
    matrix[..., :3, :3] = rigid.matrix_from_quat(rng.normal(size=(*shape, 4)))
    matrix[..., :3, 3] = rng.normal(size=(*shape, 3)) * 50
    matrix[..., 3, 3] = 1
    return matrix


def hamilton(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two quaternions xyzw, written out."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return np.array(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )


@given(quats)
def test_rotation_of_a_quaternion_turns_vectors_as_the_sandwich_product_does(q):
    q = np.array(q) / np.linalg.norm(q)
    conjugate = q * [-1, -1, -1, 1]
    for v in np.eye(3):
        sandwich = hamilton(hamilton(q, np.append(v, 0)), conjugate)[:3]
        assert np.abs(rigid.matrix_from_quat(q) @ v - sandwich).max() < 1e-12


@given(quats)
def test_quaternion_comes_back_with_w_not_negative(q):
    q = np.array(q) / np.linalg.norm(q)
    back = rigid.quat_from_matrix(rigid.matrix_from_quat(q))
    assert back[3] >= 0
    assert min(np.abs(back - q).max(), np.abs(back + q).max()) < 1e-9


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_are_well_conditioned(axis):
    matrix = -np.eye(3)
    matrix[axis, axis] = 1
    quat = rigid.quat_from_matrix(matrix)
    assert np.abs(np.abs(quat) - np.eye(4)[axis]).max() < 1e-12


def test_inverse_and_transform_equal_the_slow_way():
    poses = random_poses(1, 3, 5)
    points = np.random.default_rng(2).normal(size=(3, 5, 7, 3))
    assert np.abs(rigid.invert(poses) - np.linalg.inv(poses)).max() < 1e-10
    for i in range(3):
        for j in range(5):
            slow = [(poses[i, j] @ np.append(p, 1))[:3] for p in points[i, j]]
            assert np.abs(rigid.transform(poses, points)[i, j] - slow).max() < 1e-10


def test_torch_and_numpy_agree_and_keep_dtype():
    poses = random_poses(3, 6)
    tensors = torch.from_numpy(poses).float()
    for function in (rigid.invert, rigid.quat_from_matrix):
        out = function(tensors)
        assert out.dtype == torch.float32
        assert np.abs(out.numpy() - function(poses)).max() < 1e-4
    quats = torch.from_numpy(rigid.quat_from_matrix(poses))
    assert torch.allclose(rigid.matrix_from_quat(quats), torch.from_numpy(poses[:, :3, :3]))
    a, b = torch.from_numpy(poses[:3]), torch.from_numpy(poses[3:])
    assert np.allclose(rigid.rotation_angle_deg(a, b).numpy(), rigid.rotation_angle_deg(poses[:3], poses[3:]))


@given(st.floats(0, 180), quats)
def test_rotation_angle(angle, axis):
    axis = np.array(axis[:3])
    assume(np.linalg.norm(axis) > 1e-2)
    half = np.radians(angle) / 2
    turned = rigid.matrix_from_quat(np.append(axis / np.linalg.norm(axis) * np.sin(half), np.cos(half)))
    assert abs(rigid.rotation_angle_deg(np.eye(3), turned) - angle) < 1e-6


def test_rotation_error_names_what_is_no_rotation():
    assert rigid.rotation_error(random_poses(4)) < 1e-12
    assert rigid.rotation_error(np.diag([1.0, 1.0, -1.0])) >= 2  # a mirror
    assert rigid.rotation_error(1.1 * np.eye(3)) > 0.2


@given(quats, quats)
def test_product_and_inverse_of_quaternions_are_those_of_their_rotations(a, b):
    a, b = np.array(a), np.array(b)
    expected = rigid.matrix_from_quat(a) @ rigid.matrix_from_quat(b)
    assert np.abs(rigid.matrix_from_quat(rigid.quat_multiply(a, b)) - expected).max() < 1e-9
    assert np.abs(rigid.quat_multiply(rigid.quat_inverse(a), a) - [0, 0, 0, 1]).max() < 1e-9
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    assert np.abs(rigid.rotate(a, vectors) - vectors @ rigid.matrix_from_quat(a).T).max() < 1e-9
    turned = rigid.rotate(torch.tensor(a)[None], torch.from_numpy(vectors))
    assert np.abs(turned.numpy() - rigid.rotate(a, vectors)).max() < 1e-12
