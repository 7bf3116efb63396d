"""The loss against upstream MapAnything's: a parity file (docs/network.md §11) holds its criteria, values and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from mapanything.errors import InputError
from mapanything.train.build import build
from mapanything.train.loss_terms import AmbiguityMask, Pixels
from mapanything.train.losses import Loss

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = {"train_criterion": "train", "test_criterion": "validate"}
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4

Row = tuple[str, str, str, float, float]  # scenario, criterion, tensor name, deviation, tolerance


def check_file(path: str | Path) -> list[Row]:
    """Every total, value per term and view, and gradient in a parity file, against ours.

    A deviation is max|Δ| / max|reference|, or max|Δ| where the reference is 0; infinite where ours is not finite.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    losses = {name: load_loss(name) for name in content["criteria"]}
    rows: list[Row] = []
    for scenario, data in content["scenarios"].items():
        for criterion, expected in data["results"].items():
            found = _check(losses[criterion], data["batch"], data["preds"], expected)
            rows += [(scenario, criterion, name, deviation, tolerance) for name, deviation, tolerance in found]
    return rows


def load_loss(criterion: str) -> Loss:
    """Our loss of an upstream criterion's name, `<loss config>/train_criterion` or `.../test_criterion`."""
    name, _, part = criterion.partition("/")
    if part not in PARTS or not (CONFIGS / "loss" / f"{name}.yaml").is_file():
        raise InputError(f"criterion {criterion!r}: no config of ours; those are in {CONFIGS / 'loss'}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=[f"+loss={name}"])
    return build(config.loss[PARTS[part]], criterion)


def _check(loss: Loss, batch: list[dict], preds: list[dict], expected: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    # Every tensor is a leaf of its own, also the scaling factors that are one tensor in the network.
    leaves = [{key: value.clone().requires_grad_(value.is_floating_point()) for key, value in view.items()} for view in preds]
    total = loss(batch, leaves).total
    yield "total", _deviation(total, expected["total"]), VALUE_TOLERANCE
    yield from _check_values(loss, batch, preds, expected)
    total.backward()
    for view, (ours, theirs, norms) in enumerate(
        zip(leaves, expected.get("grads") or [{}] * len(leaves), expected["grad_norms"], strict=True)
    ):
        for key in norms | theirs:
            gradient = ours[key].grad if ours[key].grad is not None else torch.zeros_like(ours[key])
            yield f"norm of grad {key}[{view}]", _deviation(gradient.norm(), norms.get(key)), GRADIENT_TOLERANCE
            if key in theirs:
                yield f"grad {key}[{view}]", _deviation(gradient, theirs[key]), GRADIENT_TOLERANCE


def _check_values(loss: Loss, batch: list[dict], preds: list[dict], expected: dict[str, Any]) -> Iterator[tuple]:
    """Each term's value per view, before and after the outliers are left out or the confidence is applied."""
    details = {key.partition("_")[2]: value for key, value in expected["details"].items()}  # without the class's name
    with torch.no_grad():
        scene = loss.scene(batch, preds)
        for name, term in loss.terms.items():
            # Upstream gives the mask's value without its weight, and no value for what was empty.
            values = term(scene) / (term.weight if isinstance(term, AmbiguityMask) else 1)
            suffix = ""
            if isinstance(term, Pixels):
                plain = replace(term, exclude_percent=0, confidence_alpha=None)(scene)
                yield from _compare(name, plain, details)
                suffix = "_bot95%_loss" if term.confidence_alpha is None else "_conf_loss"
            yield from _compare(name + suffix, values, details)


def _compare(name: str, values: Tensor, details: dict[str, float]) -> Iterator[tuple[str, float, float]]:
    keys = [f"{name}_view{view + 1}" for view in range(len(values))] if values.ndim else [name]
    for key, value in zip(keys, values.reshape(-1), strict=True):
        if key in details:
            yield key, _deviation(value, details[key]), VALUE_TOLERANCE


def _deviation(ours: Tensor, reference: Tensor | float | None) -> float:
    if reference is None:
        return 0.0
    reference = torch.as_tensor(reference, dtype=ours.dtype)
    ours = ours.detach().reshape(reference.shape)
    if not ours.isfinite().all():
        return float("inf")
    if not reference.numel():
        return 0.0
    largest = float(reference.abs().max())
    return float((ours - reference).abs().max()) / (largest or 1.0)
