"""A network from a checkpoint: what fits, what does not, start weights, memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mapanything.errors import InputError
from mapanything.models.config import MultiViewConfig
from mapanything.models.create import create_model
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.build import build_network, load_dinov2
from mapanything.models.weights.names import canonical_name
from mapanything.models.weights.read import read_checkpoint
from mapanything.models.weights.save import save_pretrained
from mapanything.models.weights.upstream import config_to_upstream, to_json
from tests.helpers.networks import TINY
from tests.helpers.weight_files import assert_equal, dinov2, embedding, once, saved, state, tiny_model, vehicle_model

ROOT = Path(__file__).parents[3]
SWITCHED = {"encoder": {"gradient_checkpointing": True}, "geometric_inputs": {"overall_prob": 0.9}}
load = MapAnything.from_pretrained


@pytest.fixture(scope="module")
def model() -> MapAnything:
    return tiny_model()


@pytest.fixture(scope="module")
def with_vehicles() -> MapAnything:
    return vehicle_model()


def test_half_precision(model, tmp_path):
    path = saved({k: v.bfloat16() for k, v in once(model).items()}, tmp_path / "a.pth")
    loaded = load(path)
    assert all(t.dtype == torch.float32 for t in loaded.state_dict().values())
    assert all(torch.equal(v, model.state_dict()[k].bfloat16().float()) for k, v in loaded.state_dict().items())


def test_overrides(model, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(path, overrides=SWITCHED)
    assert loaded.config.encoder.gradient_checkpointing and loaded.config.geometric_inputs.overall_prob == 0.9
    assert loaded.config.encoder.depth == TINY.encoder.depth
    with pytest.raises(InputError, match=r"model\.encoder\.colour: no such entry"):
        load(path, overrides={"encoder": {"colour": 1}})


def test_weights_are_the_networks_own(model, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(path)
    path.write_bytes(b"x" * path.stat().st_size)  # in place, as some programs save
    assert_equal(loaded, model)


def test_outputs_are_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "hub")
    views = [{"img": torch.rand(1, 3, 28, 42), "data_norm_type": ["dinov2"]} for _ in range(2)]
    with torch.no_grad():
        before, after = model(views), MapAnything.from_pretrained(tmp_path / "hub")(views)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, after) for key in a)


# --- vehicle ID ---


def test_old_weights_into_a_network_with_vehicle_id(model, with_vehicles, tmp_path):
    path = saved(state(model), tmp_path / "a.pth")
    loaded = load(path, overrides={"vehicle_id": {"num_roles": 3}})
    assert embedding(loaded).shape == (3, 96) and not embedding(loaded).any()
    assert_equal(build_network(MapAnything, with_vehicles.config, read_checkpoint(path)), loaded)


def test_weights_with_vehicle_id(model, with_vehicles, tmp_path):
    path = saved(state(with_vehicles), tmp_path / "a.pth")
    loaded = load(path)
    assert loaded.config == with_vehicles.config
    assert_equal(loaded, with_vehicles)
    loaded.save_pretrained(tmp_path / "hub")
    assert load(tmp_path / "hub").config == with_vehicles.config
    for roles, own in ((0, "none"), (5, "5")):
        with pytest.raises(InputError, match=rf"vehicle ID for 3 roles, this network has {own}; set .*num_roles=3"):
            load(path, overrides={"vehicle_id": {"num_roles": roles}})
    with pytest.raises(InputError, match="this network has none"):
        create_model(path, **TINY.to_dict())


# --- what does not fit ---


def test_all_that_is_wrong_is_one_line(model, tmp_path):
    tensors = once(model)
    for name in [name for name in tensors if name.startswith("pose_head")][:5]:
        del tensors[name]
    tensors["encoder.model.extra"] = torch.ones(1)
    tensors["scale_head.proj.bias"] = torch.ones(7)
    tensors["scale_token"] = torch.ones(96, dtype=torch.int64)
    with pytest.raises(InputError) as error:
        load(saved({"model": tensors, "model_config": TINY.to_dict()}, tmp_path / "a.pth"))
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/a.pth: the weights do not fit this network: 5 missing (pose_head.proj.weight, ")
    assert "…); 1 unexpected (encoder.model.extra); 1 of another shape (scale_head.proj.bias is (7,), not (20,));" in text
    assert text.endswith("1 no floats (scale_token is torch.int64)") and "\n" not in text


def test_a_network_whose_weights_are_wrapped(model, tmp_path):
    class Parallel(torch.nn.Module):  # names its parameters as DistributedDataParallel does
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    for wrap in (torch.nn.Module.compile, Parallel):
        wrapped = wrap(tiny_model()) or torch.compile(tiny_model())
        assert isinstance(wrapped, torch.nn.Module)
        save_pretrained(wrapped, TINY, tmp_path / wrap.__name__)
        assert_equal(load(tmp_path / wrap.__name__), model)


# --- DINOv2 ---


def test_dinov2_into_encoder_and_transformer(tmp_path):
    network = MapAnything(TINY)
    others = {k: v for k, v in once(network).items() if not k.startswith(("encoder.", "info_sharing."))}
    source = dinov2(8 + 1, network)
    assert load_dinov2(network, network.config, saved(source, tmp_path / "vit.pth"))
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
    assert not load_dinov2(network, network.config, saved(source, tmp_path / "vit.pth"))
    result = once(network)
    assert torch.equal(result["encoder.model.norm.weight"], source["norm.weight"])
    assert all(torch.equal(result[name], tensor) for name, tensor in transformer.items())


def test_dinov2_of_another_kind(model, tmp_path):
    source = dinov2(8, model)
    for change, message in (
        ({"register_tokens": torch.ones(1, 4, 96)}, "with registers"),
        ({"pos_embed": torch.ones(1, 17, 96)}, r"pos_embed is \(1, 17, 96\), not \(1, 257, 96\)"),
        ({"blocks.0.norm1.weight": torch.ones(64)}, "the file: width 64, 8 blocks"),
    ):
        with pytest.raises(InputError, match=message):
            load_dinov2(MapAnything(TINY), TINY, saved(source | change, tmp_path / "vit.pth"))
    with pytest.raises(InputError, match=r"positions of 16².*blocks.2.* is missing"):
        load_dinov2(MapAnything(TINY), TINY, saved(dinov2(2, model), tmp_path / "vit.pth"))
    with pytest.raises(InputError, match="not the weights of DINOv2"):
        load_dinov2(MapAnything(TINY), TINY, saved(state(model), tmp_path / "a.pth"))


# --- memory ---

MEASURE = """
import sys, torch
from mapanything.models.mapanything import MapAnything
def high_water(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
MapAnything.from_pretrained(sys.argv[2])  # everything that is loaded once
before = high_water()
model = MapAnything.from_pretrained(sys.argv[1])
print(high_water() - before, all(torch.isfinite(p).all() for p in model.parameters()))
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
    loaded, finite = done.stdout.split()
    assert finite == "True" and int(loaded) < 1.2 * size
