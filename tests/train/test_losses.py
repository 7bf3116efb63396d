"""The loss against a slow reference and upstream's values; what it costs; what it does with little or no data."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mapanything.errors import InputError
from mapanything.train.loss_parity import check_file, load_loss
from mapanything.train.loss_terms import AmbiguityMask, Pixels, trimmed_mean
from mapanything.train.losses import Loss, SparseNotice
from tests.helpers.loss_inputs import gradients, leaves, random_scene
from tests.helpers.reference_losses import CRITERIA, reference_loss

CONFIGS = Path(__file__).parents[2] / "configs"
LOADED = {criterion: load_loss(criterion) for criterion in CRITERIA}
LOSSES = sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def composed_loss(name: str, part: str = "train", *overrides: str) -> Loss:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return instantiate(compose(overrides=[f"+loss={name}", *overrides]).loss[part])


def assert_equal_to_reference(batch, preds, criterion: str, tolerance: float = 1e-9):
    ours, theirs = leaves(preds), leaves(preds)
    found = LOADED[criterion](batch, ours)
    total, terms = reference_loss(batch, theirs, *CRITERIA[criterion])
    assert float(found.total.detach()) == pytest.approx(float(total.detach()), rel=tolerance, abs=tolerance)
    assert float(sum(found.terms[name] for name in terms)) == pytest.approx(float(found.total.detach()), rel=1e-6)
    for name, value in terms.items():
        assert float(found.terms[name]) == pytest.approx(float(value.detach()), rel=tolerance, abs=tolerance), name
    for view, (a, b) in enumerate(zip(gradients(found.total, ours), gradients(total, theirs))):
        for key in b:
            assert a[key].isfinite().all()
            assert (a[key] - b[key]).abs().max() <= tolerance * max(1e-3, float(b[key].abs().max())), (view, key)


# Right


@pytest.fixture
def upstream_file():
    folder = os.environ.get("MAPANYTHING_SPEC_DIR")
    if not folder:
        pytest.skip("MAPANYTHING_SPEC_DIR is not set: no file with upstream's values on this host")
    return Path(folder) / "parity_loss.pt"


def test_upstream_values_and_gradients(upstream_file):
    rows = check_file(upstream_file)
    assert len(rows) > 100
    bad = [row for row in rows if not row[3] <= row[4]]
    assert not bad, bad


def test_the_reference_has_upstream_values(upstream_file):
    for scenario in torch.load(upstream_file, weights_only=True)["scenarios"].values():
        for criterion, expected in scenario["results"].items():
            total, _ = reference_loss(scenario["batch"], scenario["preds"], *CRITERIA[criterion])
            assert float(total) == pytest.approx(float(expected["total"]), rel=1e-5)


@pytest.fixture
def parity_file(tmp_path):
    """A parity file with one scenario, its values from the reference."""
    batch, preds = random_scene(dtype=torch.float32)
    results = {}
    for criterion, settings_ in CRITERIA.items():
        inputs = leaves(preds)
        total, terms = reference_loss(batch, inputs, *settings_)
        grads = gradients(total, inputs)
        results[criterion] = {
            "total": total.detach(),
            "details": {"Loss_scale": float(terms["scale"].detach())},
            "grads": grads,
            "grad_norms": [{key: float(value.norm()) for key, value in view.items()} for view in grads],
        }
    scenario = {"batch": batch, "preds": preds, "results": results}
    path = tmp_path / "parity.pt"
    torch.save({"criteria": dict.fromkeys(CRITERIA, ""), "scenarios": {"random": scenario}}, path)
    return path


def test_check_of_a_parity_file(parity_file):
    rows = check_file(parity_file)
    assert {row[0] for row in rows} == {"random"} and {row[1] for row in rows} == set(CRITERIA)
    assert len(rows) == 5 * (2 + 3 * 2 * 9)
    assert all(deviation <= tolerance for _, _, _, deviation, tolerance in rows)


def test_check_of_a_parity_file_sees_differences(parity_file):
    content = torch.load(parity_file, weights_only=True)
    results = content["scenarios"]["random"]["results"]
    results["overall_loss/train_criterion"]["total"] *= 1.0001
    results["overall_loss/test_criterion"]["grads"][1]["cam_trans"] *= 1.001
    torch.save(content, parity_file)
    bad = [row[1:3] for row in check_file(parity_file) if not row[3] <= row[4]]
    assert bad == [("overall_loss/train_criterion", "total"), ("overall_loss/test_criterion", "grad cam_trans[1]")]
    content["criteria"] = {"some_loss/train_criterion": ""}
    torch.save(content, parity_file)
    with pytest.raises(InputError, match="some_loss"):
        check_file(parity_file)


@pytest.mark.parametrize("criterion", CRITERIA)
# Shrinking a failure takes minutes; the reference is slow on purpose.
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_equal_to_the_reference(criterion, data):
    num_views, num_samples = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    flags = st.lists(st.booleans(), min_size=num_samples, max_size=num_samples)
    pair = st.tuples(st.integers(0, num_views - 1), st.integers(0, num_samples - 1))
    batch, preds = random_scene(
        num_views,
        num_samples,
        seed=data.draw(st.integers(0, 10_000)),
        labelled=data.draw(st.sampled_from([0.02, 0.3, 0.8, 1.0])),
        synthetic=data.draw(flags),
        metric=data.draw(flags),
        empty=tuple(data.draw(st.lists(pair, max_size=4))),
    )
    assert_equal_to_reference(batch, preds, criterion)


EDGES = {
    "a view without a valid pixel": {"empty": ((1, 0), (1, 1))},
    "view 0 without a valid pixel": {"empty": ((0, 0), (0, 1))},
    "a sample without a valid pixel": {"empty": ((0, 1), (1, 1), (2, 1))},
    "no valid pixel at all": {"labelled": 0.0},
    "one view": {"num_views": 1},
    "one view, one sample": {"num_views": 1, "num_samples": 1},
    "one view without a valid pixel": {"num_views": 1, "num_samples": 1, "labelled": 0.0},
    "one sample": {"num_samples": 1},
    "nothing metric": {"metric": [False, False]},
    "nothing synthetic": {"synthetic": [False, False]},
    "all synthetic": {"synthetic": [True, True]},
    "sparse": {"labelled": 0.015, "size": (28, 42)},
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", EDGES)
def test_little_or_no_data(name, criterion):
    assert_equal_to_reference(*random_scene(seed=3, **EDGES[name]), criterion)
    # In float32 too, where a sample without a scale is divided by 1e-8.
    batch, preds = random_scene(seed=3, dtype=torch.float32, **EDGES[name])
    preds = leaves(preds)
    output = LOADED[criterion](batch, preds)
    assert output.total.isfinite() and all(value.isfinite() for value in output.terms.values())
    for view in gradients(output.total, preds):
        assert all(gradient.isfinite().all() for gradient in view.values())


def test_labels_of_invalid_pixels_do_not_matter():
    batch, preds = random_scene(seed=5, synthetic=[True, False])
    expected = LOADED["overall_loss/train_criterion"](batch, preds).total
    for view in batch:
        for key in ("pts3d", "pts3d_cam", "depth_along_ray"):
            view[key] = torch.where(view["valid_mask"][..., None], view[key], 1e9)
    assert torch.equal(LOADED["overall_loss/train_criterion"](batch, preds).total, expected)


def test_truth_costs_nothing():
    batch, preds = random_scene(error=0.0, labelled=1.0)
    terms = LOADED["overall_loss_highpm_plus_rel_pose_no_conf_no_ref_view/train_criterion"](batch, preds).terms
    # An angle is never below 1°: three views of weight 0.3, (1°)² / (2 · 3°) over the longer side.
    floor = 3 * 0.3 * math.radians(1) ** 2 / (2 * math.radians(3)) / 12
    assert float(terms["normal"]) == pytest.approx(floor, rel=1e-6)
    rest = {name: float(value) for name, value in terms.items() if name not in ("normal", "mask") and "usable" not in name}
    assert max(rest.values()) < 1e-6, rest


def test_the_mask_learns_where_its_target_is_known():
    """All known: bit-equal to a batch that does not say. None: no part of the loss. Else the mean over what is known."""
    batch, preds = random_scene(3, 2)
    loss = Loss({"mask": AmbiguityMask(0.3)})

    def value(known: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        ours = leaves(preds)
        views = batch if known is None else [view | {"mask_known": known} for view in batch]
        total = loss(views, ours).total
        total.backward()
        gradient = ours[0]["non_ambiguous_mask_logits"].grad
        assert gradient is not None
        return total, gradient

    everywhere = torch.ones_like(batch[0]["valid_mask"])
    assert all(torch.equal(a, b) for a, b in zip(value(None), value(everywhere), strict=True))
    half = everywhere.clone()
    half[..., ::2] = False
    total, gradient = value(half)
    expected = [
        F.binary_cross_entropy_with_logits(p["non_ambiguous_mask_logits"][half], b["non_ambiguous_mask"][half].double())
        for p, b in zip(preds, batch, strict=True)
    ]
    assert torch.isclose(total, 0.3 * torch.stack(expected).sum()) and (gradient[~half] == 0).all() and gradient[half].all()
    total, gradient = value(~everywhere)
    assert total == 0 and (gradient == 0).all()


def test_trimmed_mean_keeps_the_smallest():
    values = torch.tensor([[[3.0, 1.0, 9.0, 2.0, 7.0]], [[5.0, 4.0, 6.0, 8.0, 0.0]]])[..., None]  # (2, 1, 5, 1)
    valid = torch.tensor([[[1, 1, 1, 1, 0]], [[1, 1, 1, 0, 0]]]).bool()[..., None]
    kept = trimmed_mean(values, valid, torch.tensor([[False], [True]]), 50)
    assert kept.tolist() == pytest.approx([(1 + 2 + 5 + 4 + 6) / 5])


def test_stacked_inputs_give_the_same():
    batch, preds = random_scene()
    loss = LOADED["overall_loss_highpm_plus_rel_pose/train_criterion"]
    stacked = [{key: torch.stack([view[key] for view in views], 1) for key in views[0]} for views in (batch, preds)]
    assert torch.equal(loss(*stacked).total, loss(batch, preds).total)


def test_missing_entries_are_named():
    batch, preds = random_scene()
    for view in preds:
        del view["conf"]
    with pytest.raises(ValueError, match="'conf'"):
        LOADED["overall_loss/train_criterion"](batch, preds)
    LOADED["overall_loss/test_criterion"](batch, preds)


# Cheap


class Calls(TorchDispatchMode):
    """ATen calls, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_number_of_calls_does_not_grow_with_the_views(criterion):
    counts = []
    for num_views in (2, 24):
        batch, preds = random_scene(num_views, 1, dtype=torch.float32)
        preds = leaves(preds)
        with Calls() as calls:
            LOADED[criterion](batch, preds)
        counts.append(len(calls.names))
        assert not any("nonzero" in name or "_local_scalar" in name or "index.Tensor" in name for name in calls.names)
    # Upstream: 69,421 for 24 views.
    assert counts[0] == counts[1] <= 800, counts


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_depends_on_data(criterion):
    batch, preds = random_scene(dtype=torch.float32)
    mode = FakeTensorMode()
    with mode:
        fake = [[{key: mode.from_tensor(value) for key, value in view.items()} for view in views] for views in (batch, preds)]
        for view in fake[1]:
            for value in view.values():
                value.requires_grad_()
        LOADED[criterion](*fake).total.backward()  # a fake tensor refuses to be read
    meta = [[{key: value.to("meta") for key, value in view.items()} for view in views] for views in (batch, preds)]
    assert LOADED[criterion](*meta).total.device.type == "meta"


def test_float32_under_autocast():
    batch, preds = random_scene(dtype=torch.float32)
    loss = LOADED["overall_loss_highpm_plus_rel_pose/train_criterion"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(batch, preds).total
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(batch, preds).total)


# Sparse depth


def test_sparse_depth_is_said_once(caplog):
    loss, notice = LOADED["overall_loss/train_criterion"], SparseNotice()
    sizes = {"size": (28, 42), "dtype": torch.float32}
    dense, sparse = (
        {name: float(value) for name, value in loss(*random_scene(labelled=share, **sizes)).terms.items()}
        for share in (0.9, 0.015)
    )
    assert dense["normal_usable"] > 0.9 and dense["gradient_matching_usable"] > 0.8
    assert sparse["normal_usable"] < 0.1 and sparse["gradient_matching_usable"] < 0.1
    with caplog.at_level(logging.WARNING):
        notice(dense)
        assert not caplog.records
        notice(sparse)
        notice(sparse)
    assert [record.args[0] for record in caplog.records] == ["normal", "gradient_matching"]
    assert "sparse depth" in caplog.text


def test_nothing_labelled_is_not_called_sparse():
    terms = LOADED["overall_loss/train_criterion"](*random_scene(labelled=0.0)).terms
    assert terms["normal_usable"] == terms["gradient_matching_usable"] == 1


@pytest.mark.parametrize("step", [2, 3])
def test_no_neighbours_no_normals(step):
    batch, preds = random_scene(size=(20, 24), labelled=1.0)
    for view in batch:
        mask = torch.zeros_like(view["valid_mask"])
        mask[:, ::step, ::step] = True
        view["valid_mask"] = mask
    preds = leaves(preds)
    loss = LOADED["overall_loss/train_criterion"]
    scene = loss.scene(batch, preds)
    normals = loss.terms["normal"](scene).sum()
    assert normals == 0
    assert all((gradient == 0).all() for view in gradients(normals, preds) for gradient in view.values())


# Configs


def confidence_alpha(loss: Loss) -> float | None:
    points = loss.terms["pts3d"]
    assert isinstance(points, Pixels)
    return points.confidence_alpha


@pytest.mark.parametrize("name", LOSSES)
def test_every_config_builds(name):
    batch, preds = random_scene()
    for part in ("train", "validate"):
        loss = composed_loss(name, part)
        assert isinstance(loss, Loss) and not list(loss.parameters())
        assert loss(batch, preds).total.isfinite()
    assert confidence_alpha(loss) is None  # validation is comparable between runs


def test_confidence_and_frames_of_the_configs():
    trained = {name: composed_loss(name) for name in LOSSES}
    assert {name for name, loss in trained.items() if confidence_alpha(loss)} == {
        "overall_loss",
        "overall_loss_highpm_plus_rel_pose",
    }
    assert {name for name, loss in trained.items() if loss.to_view0} == {
        "overall_loss_highpm_plus_rel_pose_no_conf_no_ref_view"
    }
