"""Small networks, their weights, and files of them, for the tests of weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from mapanything.models.config import VehicleIdConfig
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.names import canonical_name, safetensors_names
from mapanything.models.weights.upstream import config_to_upstream, to_json
from tests.helpers.networks import TINY


def tiny_model() -> MapAnything:
    torch.manual_seed(0)
    model = MapAnything(TINY)
    assert model.info_sharing.view_pos_table is not None
    model.info_sharing.view_pos_table.data += 0.25  # not the one that the constructor makes
    return model


def vehicle_model() -> MapAnything:
    model = MapAnything(replace(TINY, vehicle_id=VehicleIdConfig(num_roles=3)))
    torch.nn.init.normal_(embedding(model))
    return model


def embedding(model: MapAnything) -> torch.Tensor:
    """The embeddings of vehicle roles, which not every network has."""
    assert model.vehicle_id is not None
    return model.vehicle_id.embedding


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def once(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor under its canonical name only, with memory of its own."""
    return {canonical_name(key): tensor.clone() for key, tensor in state(model).items()}


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    a_state, b_state = a.state_dict(), b.state_dict()
    assert a_state.keys() == b_state.keys()
    different = [key for key in a_state if not torch.equal(a_state[key], b_state[key])]
    assert not different


def saved(content, path: Path, **options) -> Path:
    torch.save(content, path, **options)
    return path


def saved_safetensors(tensors, path: Path, **options) -> Path:
    save_file(tensors, path, **options)
    return path


def wrapped_blocks(model: MapAnything) -> dict[str, torch.Tensor]:
    return {key.replace("blocks.0.", "blocks.0._orig_mod."): tensor for key, tensor in state(model).items()}


def sharded(model: MapAnything, folder: Path) -> Path:
    folder.mkdir()
    tensors = once(model)
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        list(parts.values())[number % 2][name] = tensor
    for file, part in parts.items():
        save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(to_json(config_to_upstream(TINY)))
    return folder


def upstream_names(model: MapAnything, path: Path) -> Path:
    names, metadata = safetensors_names(model.state_dict())
    return saved_safetensors({names[name]: t for name, t in once(model).items()}, path, metadata=metadata)


def upstream_training(model: MapAnything) -> dict:
    """A checkpoint as upstream's training stores it: its Hydra config, pickled, beside the weights."""
    args = OmegaConf.create({"model": {"name": "x", "sizes": [1, 2, {"a": None}]}, "lr": 1e-4, "link": "${lr}", "flag": True})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    best = torch.ones(1).double().numpy()[0]
    return {"model": state(model), "optimizer": optimizer.state_dict(), "args": args, "epoch": 3, "best_so_far": best}


def dinov2(blocks: int, kind: MapAnything) -> dict[str, torch.Tensor]:
    """A file of DINOv2's repository, for the widths of `kind`."""
    tensors = {"mask_token": torch.ones(1, 96)}
    for name, tensor in kind.state_dict().items():
        if name.startswith("encoder.model.") and ".blocks." not in name:
            tensors[name.removeprefix("encoder.model.")] = torch.randn(tensor.shape)
        if name.startswith("encoder.model.blocks.0."):
            for number in range(blocks):
                tensors[f"blocks.{number}.{name.removeprefix('encoder.model.blocks.0.')}"] = torch.randn(tensor.shape)
    return tensors | {"norm.weight": torch.randn(96), "norm.bias": torch.randn(96)}
