"""The network that `model=NAME` in a Hydra config builds."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.config import VehicleIdConfig
from mapanything.models.create import create_model
from tests.helpers.networks import TINY, V1
from tests.helpers.weight_files import dinov2, embedding, saved, state, tiny_model


def test_create_model_takes_the_architecture_of_the_checkpoint(tmp_path, caplog):
    model = tiny_model()
    path = saved(state(model), tmp_path / "a.pth")
    config = replace(V1, encoder=replace(V1.encoder, gradient_checkpointing=True), vehicle_id=VehicleIdConfig(num_roles=4))
    config = replace(config, geometric_inputs=replace(config.geometric_inputs, cam_prob=0.5))
    with caplog.at_level(logging.INFO):
        created = create_model(str(path), **config.to_dict())
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: holds mapanything_tiny; the config's model=mapanything_v1 gives way, its switches stay"
    ]
    assert created.training and created.config.multiview == TINY.multiview and created.config.heads == TINY.heads
    assert created.config.encoder == replace(TINY.encoder, gradient_checkpointing=True)
    assert created.config.geometric_inputs == replace(TINY.geometric_inputs, cam_prob=0.5)
    assert created.config.vehicle_id.num_roles == 4 and not embedding(created).any()
    assert torch.equal(created.scale_token, model.scale_token)


def test_create_model_can_start_from_dinov2(tmp_path):
    source = dinov2(8, tiny_model())
    path = saved(source, tmp_path / "vit.pth")
    built = create_model(dinov2=path, **TINY.to_dict())
    assert torch.equal(built.encoder.model.pos_embed, source["pos_embed"])
    with pytest.raises(InputError, match=r"model\.pretrained and model\.dinov2"):
        create_model(pretrained=path, dinov2=path)
