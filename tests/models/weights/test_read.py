"""Weights in every form that users have them in, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.copying import Copying
from mapanything.models.weights.identify import identify
from mapanything.models.weights.read import read_checkpoint
from tests.helpers.networks import TINY, V1
from tests.helpers.weight_files import (
    assert_equal,
    once,
    saved,
    saved_safetensors,
    sharded,
    state,
    tiny_model,
    upstream_names,
    upstream_training,
    wrapped_blocks,
)

load = MapAnything.from_pretrained


@pytest.fixture(scope="module")
def model() -> MapAnything:
    return tiny_model()


FORMS = {
    "plain .pth": lambda m, d: saved(state(m), d / "a.pth"),
    ".pth with the key model": lambda m, d: saved({"model": state(m), "epoch": 3, "args": {"lr": 1.0}}, d / "a.pth"),
    "ordered, .pt": lambda m, d: saved(OrderedDict(once(m)), d / "a.pt"),
    "from before torch 1.6": lambda m, d: saved(state(m), d / "a.pth", _use_new_zipfile_serialization=False),
    "upstream's training": lambda m, d: saved(upstream_training(m), d / "a.pth"),
    "our training": lambda m, d: saved({"model": state(m), "model_config": m.config.to_dict()}, d / "a.pth"),
    "DistributedDataParallel": lambda m, d: saved({f"module.{k}": v for k, v in state(m).items()}, d / "a.pth"),
    "compiled": lambda m, d: saved({f"module._orig_mod.{k}": v for k, v in state(m).items()}, d / "a.pth"),
    "compiled blocks": lambda m, d: saved(wrapped_blocks(m), d / "a.pth"),
    "canonical safetensors": lambda m, d: saved_safetensors(once(m), d / "a.safetensors"),
    "safetensors, every alias": lambda m, d: saved_safetensors({k: v.clone() for k, v in state(m).items()}, d / "a.bin"),
    "upstream's safetensors": lambda m, d: upstream_names(m, d / "model.safetensors"),
    "folder without config.json": lambda m, d: upstream_names(m, d / "model.safetensors").parent,
    "sharded folder": lambda m, d: sharded(m, d / "hub"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_network(form, model, tmp_path):
    path = FORMS[form](model, tmp_path)
    loaded = load(path)
    assert_equal(loaded, model)
    assert loaded.config == TINY and not loaded.training
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert len(tensors) == len([*model.parameters(), *model.buffers()])  # what was shared still is
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    assert all(p.requires_grad for p in loaded.parameters())


# --- broken files ---


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def half(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def flipped(path: Path, part: bytes) -> Path:
    """One bit changes in the middle of the only place where these bytes are."""
    data = bytearray(path.read_bytes())
    assert data.count(part) == 1
    data[data.find(part) + len(part) // 2] ^= 1
    path.write_bytes(data)
    return path


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def contradicting(model: MapAnything) -> dict[str, torch.Tensor]:
    tensors = {key: tensor.clone() for key, tensor in state(model).items()}
    tensors["dense_head.1.conv1.bias"] += 1
    return tensors


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def hub(model: MapAnything, folder: Path, **files: str) -> Path:
    model.save_pretrained(folder)
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def incomplete(folder: Path) -> Path:
    next(folder.glob("model-00002*")).unlink()
    return folder


def pth_shard(folder: Path) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002.safetensors", "model-2.pth"))
    torch.save({"a": torch.ones(1)}, folder / "model-2.pth")
    return folder


BROKEN = {
    "no such": (lambda m, d: d / "a.pth", "no such file or folder; nothing is downloaded"),
    "hub name": (lambda m, d: Path("facebook/map-anything"), "give their folder"),
    "empty": (lambda m, d: written(d / "a.pth", b""), "is empty"),
    "text": (lambda m, d: written(d / "a.pth", "<!DOCTYPE html><html>Not found"), "is a text"),
    "lfs": (lambda m, d: written(d / "a.pth", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "truncated zip": (lambda m, d: half(saved(state(m), d / "a.pth")), "damaged or not complete"),
    "truncated old": (
        lambda m, d: half(saved(state(m), d / "a.pth", _use_new_zipfile_serialization=False)),
        "damaged or not complete",
    ),
    "one bit of a weight": (
        lambda m, d: flipped(saved(state(m), d / "a.pth"), bytes_of(m.pose_head.proj.weight)),
        r"is damaged \(pose_head\.proj\.weight is not what was saved: its checksum is wrong\); fetch or copy it again",
    ),
    "one bit of a weight of a training": (
        lambda m, d: flipped(saved(upstream_training(m), d / "a.pth"), bytes_of(m.pose_head.proj.weight)),
        r"is damaged \(pose_head\.proj\.weight .* copy it again",
    ),
    "one bit of a name": (
        lambda m, d: flipped(saved(state(m), d / "a.pth"), b"pose_head.proj.weight"),
        r"is damaged or not complete; fetch or copy it again \(.*CRC-32",
    ),
    "truncated safetensors": (lambda m, d: half(saved_safetensors(once(m), d / "a.safetensors")), "damaged or not complete"),
    "noise": (lambda m, d: written(d / "a.pth", b"\x80" + bytes(range(255)) * 9), "."),
    "malicious": (lambda m, d: saved({"model": state(m), "args": Malice()}, d / "a.pth"), "more than weights .*system"),
    "malicious pickle": (lambda m, d: written(d / "a.pth", pickle.dumps(Malice())), "."),
    "whole module": (lambda m, d: saved(m, d / "a.pth"), "more than weights .*state_dict"),
    "TorchScript": (
        lambda m, d: torch.jit.script(torch.nn.Linear(1, 1)).save(str(d / "a.pth")) or d / "a.pth",
        "TorchScript",
    ),
    "one tensor": (lambda m, d: saved(torch.ones(3), d / "a.pth"), "holds a single Tensor"),
    "nothing in it": (lambda m, d: saved({}, d / "a.pth"), "holds nothing"),
    "nested": (lambda m, d: saved({"state": state(m)}, d / "a.pth"), "'state' is no tensor"),
    "another network": (lambda m, d: saved({"fc.weight": torch.ones(1)}, d / "a.pth"), "not the weights of a MapAnything"),
    "DINOv2": (lambda m, d: saved({"blocks.0.norm1.weight": torch.ones(1)}, d / "a.pth"), "go to load_dinov2"),
    "aliases differ": (lambda m, d: saved(contradicting(m), d / "a.pth"), "names .* hold different values"),
    "aliases differ, safetensors": (
        lambda m, d: saved_safetensors(contradicting(m), d / "a.st"),
        "names .* hold different values",
    ),
    "folder without weights": (lambda m, d: d, "no model.safetensors in it; give a folder with"),
    "folder of other files": (lambda m, d: saved({}, d / "a.pth").parent, "no model.safetensors in it; give the file .*a.pth"),
    "no JSON": (lambda m, d: hub(m, d / "hub", config="{"), r"config\.json: is no JSON"),
    "JSON of another kind": (lambda m, d: hub(m, d / "hub", config="[1]"), "a group of entries"),
    "config of another model": (
        lambda m, d: hub(m, d / "hub", config='{"hidden_size": 3}'),
        r"config\.json: model\.hidden_size",
    ),
    "shard missing": (lambda m, d: incomplete(sharded(m, d / "hub")), "folder is not complete"),
    "shard elsewhere": (
        lambda m, d: written(d / "model.safetensors.index.json", '{"weight_map": {"a": "../../secret"}}').parent,
        "no `weight_map`",
    ),
    "shard is a folder": (
        lambda m, d: written(d / "model.safetensors.index.json", '{"weight_map": {"a": ".."}}').parent,
        "no `weight_map`",
    ),
    "shard of another kind": (
        lambda m, d: pth_shard(sharded(m, d / "hub")),
        "model-2.pth: is no safetensors file",
    ),
    "config of another size": (
        lambda m, d: hub(m, d / "hub", config=json.dumps(V1.to_dict())),
        "config.json: says model=mapanything_v1, the weights beside it are those of model=mapanything_tiny",
    ),
    "config of absurd depth": (
        lambda m, d: hub(m, d / "hub", config=json.dumps(TINY.to_dict()).replace('"depth": 4', '"depth": 90000')),
        r"config\.json: model\.encoder\.depth=90000: give a whole number from 1 to 200",
    ),
    "half a config": (
        lambda m, d: hub(m, d / "hub", config=json.dumps({"encoder": TINY.encoder.to_dict()})),
        r"config\.json: model\.multiview: is missing",
    ),
    "config without end": (
        lambda m, d: hub(m, d / "hub", config='{"encoder_config": ' + '{"a": ' * 900 + "1" + "}" * 901),
        r"config\.json: ",
    ),
    "JSON without end": (lambda m, d: hub(m, d / "hub", config='{"a": ' + "[" * 5000), r"config\.json: is no JSON"),
    "a list for a number": (
        lambda m, d: hub(m, d / "hub", config=json.dumps(TINY.to_dict()).replace('"num_heads": 3', '"num_heads": []')),
        r"config\.json: model\.encoder\.num_heads=\(\): give a whole number",
    ),
}


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file", "ignore:.*torch.jit", "ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_in_one_line(case, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    make, message = BROKEN[case]
    path = make(model, tmp_path / "files")
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / "executed").exists()


@pytest.mark.faults
def test_only_the_weights_have_to_be_whole(model, tmp_path):
    """Nothing else of a training checkpoint is read: an optimizer's state is as large as two networks."""
    moments = torch.arange(1e4)
    path = saved({"model": state(model), "optimizer": {0: moments}}, tmp_path / "a.pth")
    assert_equal(load(flipped(path, bytes_of(moments))), model)


@pytest.mark.parametrize("when", ["saved without", "filled in later"])
def test_files_without_checksums(when, model, tmp_path):
    """torch can leave them out: altogether, or where the bytes come after `torch.save`."""
    torch.serialization.set_crc32_options(when != "saved without")
    path = saved(once(model), tmp_path / "a.pth")
    torch.serialization.set_crc32_options(True)
    if when == "filled in later":  # the table of contents has zeros then, for these alone
        data = bytearray(path.read_bytes())
        with ZipFile(path) as archive:
            for info in archive.infolist():
                if "/data/" in info.filename:
                    place = data.find(struct.pack("<I", info.CRC), archive.start_dir)
                    data[place : place + 4] = bytes(4)
        path.write_bytes(data)
    assert_equal(load(path), model)


def test_reading_touches_nothing(model, tmp_path):
    """A flipped bit is found where weights are copied; who only asks which network it is does not read all of them."""
    path = saved({"model": state(model), "model_config": TINY.to_dict()}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(flipped(path, bytes_of(model.pose_head.proj.weight)))
    assert checkpoint.mapped and checkpoint.source == path and checkpoint.entries == TINY.to_dict()
    assert checkpoint.tensors.keys() == once(model).keys() and identify(checkpoint) == TINY
    copying = Copying(checkpoint)
    for _ in range(2):  # pages that were dropped come back
        copying.copy("pose_head.proj.bias", target := torch.empty_like(model.pose_head.proj.bias))
        assert torch.equal(target, model.pose_head.proj.bias)
    with pytest.raises(InputError, match="its checksum is wrong"):
        copying.copy("pose_head.proj.weight", torch.empty_like(model.pose_head.proj.weight))
