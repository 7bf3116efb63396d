"""Weights into a network and out of it: what fits, what does not, start weights, saving, memory."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file

from mapanything.errors import InputError
from mapanything.files import umask
from mapanything.models import weights
from mapanything.models.config import TINY, V1, MultiViewConfig, VehicleIdConfig
from mapanything.models.create import create_model
from mapanything.models.mapanything import MapAnything
from mapanything.models.names import canonical_name, safetensors_names
from mapanything.models.upstream import config_to_upstream, to_json
from mapanything.models.weights import load, load_dinov2, load_into, save_pretrained
from tests.helpers.weight_files import assert_equal, once, saved, state, tiny_model, vehicle_model

ROOT = Path(__file__).parents[2]
SWITCHED = {"encoder": {"gradient_checkpointing": True}, "geometric_inputs": {"overall_prob": 0.9}}


@pytest.fixture(scope="module")
def model() -> MapAnything:
    return tiny_model()


@pytest.fixture(scope="module")
def with_vehicles() -> MapAnything:
    return vehicle_model()


def test_a_config_beside_the_weights_tells_what_shapes_do_not(tmp_path):
    config = replace(
        TINY,
        multiview=replace(TINY.multiview, taps=(0, 3 - 1), num_heads=2, depth=3),
        encoder=replace(TINY.encoder, num_heads=6),
    )
    other = MapAnything(config)
    with pytest.raises(InputError, match=r"none of the known networks \(encoder of 4 blocks of 96, transformer of 3 blocks"):
        load(MapAnything, saved(state(other), tmp_path / "a.pth"))
    assert (
        load(MapAnything, saved({"model": state(other), "model_config": config.to_dict()}, tmp_path / "b.pth")).config
        == config
    )
    save_pretrained(other, tmp_path / "hub")
    assert load(MapAnything, tmp_path / "hub").config == config


def test_half_precision(model, tmp_path):
    path = saved({k: v.bfloat16() for k, v in once(model).items()}, tmp_path / "a.pth")
    loaded = load(MapAnything, path)
    assert all(t.dtype == torch.float32 for t in loaded.state_dict().values())
    assert all(torch.equal(v, model.state_dict()[k].bfloat16().float()) for k, v in loaded.state_dict().items())


def test_overrides(model, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(MapAnything, path, overrides=SWITCHED)
    assert loaded.config.encoder.gradient_checkpointing and loaded.config.geometric_inputs.overall_prob == 0.9
    assert loaded.config.encoder.depth == TINY.encoder.depth
    with pytest.raises(InputError, match=r"model\.encoder\.colour: no such entry"):
        load(MapAnything, path, overrides={"encoder": {"colour": 1}})


def test_weights_are_the_networks_own(model, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(MapAnything, path)
    path.write_bytes(b"x" * path.stat().st_size)  # in place, as some programs save
    assert_equal(loaded, model)


def test_outputs_are_the_same(model, tmp_path):
    save_pretrained(model, tmp_path / "hub")
    views = [{"img": torch.rand(1, 3, 28, 42), "data_norm_type": ["dinov2"]} for _ in range(2)]
    with torch.no_grad():
        before, after = model(views), MapAnything.from_pretrained(tmp_path / "hub")(views)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, after) for key in a)


# --- vehicle ID ---


def test_old_weights_into_a_network_with_vehicle_id(model, with_vehicles, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(MapAnything, path, overrides={"vehicle_id": {"num_roles": 3}})
    assert loaded.vehicle_id.embedding.shape == (3, 96) and not loaded.vehicle_id.embedding.any()
    other = MapAnything(with_vehicles.config)
    torch.nn.init.ones_(other.vehicle_id.embedding)
    load_into(other, path)
    assert_equal(loaded, other)


def test_weights_with_vehicle_id(model, with_vehicles, tmp_path):
    path = saved(state(with_vehicles), tmp_path / "a.pth")
    loaded = load(MapAnything, path)
    assert loaded.config == with_vehicles.config
    assert_equal(loaded, with_vehicles)
    save_pretrained(loaded, tmp_path / "hub")
    assert load(MapAnything, tmp_path / "hub").config == with_vehicles.config
    for network, own in ((MapAnything(TINY), "none"), (MapAnything(replace(TINY, vehicle_id=VehicleIdConfig(5))), "5")):
        with pytest.raises(InputError, match=rf"vehicle ID for 3 roles, this network has {own}; set .*num_roles=3"):
            load_into(network, path)
    with pytest.raises(InputError, match="this network has none"):
        create_model(path, **TINY.to_dict())


# --- what does not fit ---


def test_load_into_lists_what_is_wrong_and_changes_nothing(model, tmp_path):
    tensors = once(model)
    for name in [name for name in tensors if name.startswith("pose_head")][:5]:
        del tensors[name]
    tensors["encoder.model.extra"] = torch.ones(1)
    tensors["scale_head.proj.bias"] = torch.ones(7)
    tensors["scale_token"] = torch.ones(96, dtype=torch.int64)
    other = MapAnything(TINY)
    before = once(other)
    with pytest.raises(InputError) as error:
        load_into(other, saved(tensors, tmp_path / "a.pth"))
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/a.pth: the weights do not fit this network: 5 missing (pose_head.proj.weight, ")
    assert "…); 1 unexpected (encoder.model.extra); 1 of another shape (scale_head.proj.bias is (7,), not (20,));" in text
    assert text.endswith("1 no floats (scale_token is torch.int64)") and "\n" not in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in once(other).items())


def test_it_says_what_the_file_would_fit(model, tmp_path):
    with torch.device("meta"):
        big = MapAnything(V1)
    with pytest.raises(InputError, match=r"the file would fit model=mapanything_tiny, this network is model=mapanything_v1$"):
        load_into(big, saved(state(model), tmp_path / "a.pth"))


def test_load_into_a_wrapped_network(model, tmp_path):
    class Parallel(torch.nn.Module):  # names its parameters as DistributedDataParallel does
        def __init__(self, module):
            super().__init__()
            self.module = module

    path = saved(state(model), tmp_path / "a.pth")
    for wrap in (torch.compile, Parallel):
        other = MapAnything(TINY)
        load_into(wrap(other), path)
        assert_equal(other, model)
        save_pretrained(wrap(other), tmp_path / wrap.__name__)
        assert_equal(load(MapAnything, tmp_path / wrap.__name__), model)


# --- DINOv2 ---


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


def test_dinov2_into_encoder_and_transformer(tmp_path):
    network = MapAnything(TINY)
    others = {k: v for k, v in once(network).items() if not k.startswith(("encoder.", "info_sharing."))}
    source = dinov2(8 + 1, network)
    assert load_dinov2(network, saved(source, tmp_path / "vit.pth"))
    result = once(network)
    assert torch.equal(result["encoder.model.pos_embed"], source["pos_embed"])
    assert torch.equal(result["encoder.model.blocks.3.mlp.w12.weight"], source["blocks.3.mlp.w12.weight"])
    for number in range(4):
        name = f"self_attention_blocks.{number}.ls2.gamma"
        assert torch.equal(result[f"info_sharing.{name}"], source[f"blocks.{4 + number}.ls2.gamma"])
    assert torch.equal(result["info_sharing.norm.bias"], source["norm.bias"])
    assert all(torch.equal(result[name], tensor) for name, tensor in others.items())


def test_dinov2_into_the_encoder_only(tmp_path):
    like_v1 = replace(
        TINY,
        encoder=replace(TINY.encoder, final_norm=True),
        multiview=MultiViewConfig(64, 4, 2, "mlp", 256, None, (0, 1), class_token=False),
    )
    network = MapAnything(like_v1)
    transformer = {k: v for k, v in once(network).items() if k.startswith("info_sharing.")}
    source = dinov2(4, network)
    assert not load_dinov2(network, saved(source, tmp_path / "vit.pth"))
    result = once(network)
    assert torch.equal(result["encoder.model.norm.weight"], source["norm.weight"])
    assert all(torch.equal(result[name], tensor) for name, tensor in transformer.items())


def test_create_model_can_start_from_dinov2(model, tmp_path):
    source = dinov2(8, model)
    path = saved(source, tmp_path / "vit.pth")
    built = create_model(dinov2=path, **TINY.to_dict())
    assert torch.equal(built.encoder.model.pos_embed, source["pos_embed"])
    with pytest.raises(InputError, match=r"model\.pretrained and model\.dinov2"):
        create_model(pretrained=path, dinov2=path)


def test_dinov2_of_another_kind(model, tmp_path):
    source = dinov2(8, model)
    for change, message in (
        ({"register_tokens": torch.ones(1, 4, 96)}, "with registers"),
        ({"pos_embed": torch.ones(1, 17, 96)}, r"pos_embed is \(1, 17, 96\), not \(1, 257, 96\)"),
        ({"blocks.0.norm1.weight": torch.ones(64)}, "the file: width 64, 8 blocks"),
    ):
        with pytest.raises(InputError, match=message):
            load_dinov2(MapAnything(TINY), saved(source | change, tmp_path / "vit.pth"))
    with pytest.raises(InputError, match=r"positions of 16².*blocks.2.* is missing"):
        load_dinov2(MapAnything(TINY), saved(dinov2(2, model), tmp_path / "vit.pth"))
    with pytest.raises(InputError, match="not the weights of DINOv2"):
        load_dinov2(MapAnything(TINY), saved(state(model), tmp_path / "a.pth"))


# --- saving ---


def test_saved_folder_is_upstreams(model, tmp_path):
    model.save_pretrained(tmp_path / "deep" / "hub")
    folder = tmp_path / "deep" / "hub"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder.stat().st_mode & 0o777) == 0o777 & ~umask()
    assert all((path.stat().st_mode & 0o777) == 0o666 & ~umask() for path in folder.iterdir())
    with safe_open(folder / "model.safetensors", "pt") as file:
        kept, metadata = safetensors_names(model.state_dict())
        assert set(file.keys()) == set(kept.values()) and file.metadata() == metadata
    other = MapAnything(TINY)
    load_model(other, folder / "model.safetensors", strict=True)  # how upstream's hub class loads it
    assert_equal(other, model)
    assert json.loads((folder / "config.json").read_text())["encoder_config"]["encoder_str"] == "dinov2"


def test_saving_replaces_a_checkpoint_and_nothing_else(model, with_vehicles, tmp_path):
    (tmp_path / "empty").mkdir()
    save_pretrained(model, tmp_path / "empty")
    folder = tmp_path / "hub"
    save_pretrained(model, folder)
    (folder / "README.md").write_text("mine")
    save_pretrained(with_vehicles, folder)
    assert_equal(load(MapAnything, folder), with_vehicles)
    assert (folder / "README.md").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        save_pretrained(model, tmp_path / "other")
    with pytest.raises(InputError, match="is a file"):
        save_pretrained(model, folder / "README.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "hub", "other"]


@pytest.mark.faults
def test_a_full_disk_leaves_the_old_checkpoint(model, with_vehicles, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path / "hub")

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    for folder in (tmp_path / "hub", tmp_path / "new"):
        with pytest.raises(InputError, match="can't be written \\(No space left on device\\)"):
            save_pretrained(with_vehicles, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    assert_equal(load(MapAnything, tmp_path / "hub"), model)


# --- Hydra's entry ---


def test_create_model_takes_the_architecture_of_the_checkpoint(model, tmp_path, caplog):
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
    assert created.config.vehicle_id.num_roles == 4 and not created.vehicle_id.embedding.any()
    assert torch.equal(created.scale_token, model.scale_token)


# --- memory ---

MEASURE = """
import sys, torch
from dataclasses import replace
from mapanything.models.config import TINY
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights import load, load_into
def high_water(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
load(MapAnything, sys.argv[2])  # everything that is loaded once
before = high_water()
model = load(MapAnything, sys.argv[1])
after = high_water()
load_into(model, sys.argv[1])
print(after - before, high_water() - after, all(torch.isfinite(p).all() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", [".pth", ".safetensors"])
def test_loading_needs_no_second_copy(form, model, tmp_path):
    config = replace(TINY, geometric_inputs=replace(TINY.geometric_inputs, dense_dims=(300, 350, 400)))
    with torch.device("meta"):
        big = MapAnything(config)
    tensors = {canonical_name(key): torch.ones(tensor.shape) for key, tensor in big.state_dict().items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size > 60e6
    if form == ".pth":  # beside an optimizer state that nobody wants in memory
        content = {"model": tensors, "model_config": config.to_dict(), "optimizer": {0: torch.ones(20_000_000)}}
        path = saved(content, tmp_path / "a.pth")
    else:
        (tmp_path / "hub").mkdir()
        save_file(tensors, tmp_path / "hub" / "model.safetensors")
        (tmp_path / "hub" / "config.json").write_text(to_json(config_to_upstream(config)))
        path = tmp_path / "hub"
    small = saved(state(model), tmp_path / "small.pth")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded, filled, finite = done.stdout.split()
    assert finite == "True" and int(loaded) < 1.2 * size and int(filled) < 0.2 * size
