"""Small files beside the large ones: configs, records, lists; what must hold where one of them is broken."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mapanything.evaluation.scene_list import read_frames
from mapanything.inference.pixels import decode, image_size
from mapanything.opv2v.png import read_bytes
from mapanything.results.record import is_done

Check = Callable[[bytes], None]
Made = tuple[list[bytes], Check]


def hub_config(name: str) -> Callable[[Path], Made]:
    """config.json, in upstream's words and in ours, or the index of several files of weights."""

    def own(folder: Path) -> Made:
        from safetensors.torch import save_file

        from mapanything.models.config import ModelConfig
        from mapanything.models.weights.identify import identify
        from mapanything.models.weights.read import CONFIG, INDEX, read_checkpoint
        from mapanything.models.weights.upstream import config_to_upstream, to_json
        from tests.helpers.networks import TINY

        tensors = small_weights()
        files = {key: f"{'ab'[number % 2]}.safetensors" for number, key in enumerate(tensors)}
        for file in sorted(set(files.values())):
            save_file({key: tensors[key] for key in tensors if files[key] == file}, folder / file)
        contents = {
            CONFIG: [to_json(config_to_upstream(TINY)), json.dumps(TINY.to_dict())],
            INDEX: [json.dumps({"weight_map": files})],
        }
        for file, texts in contents.items():
            (folder / file).write_text(texts[0])

        def check(data: bytes) -> None:
            (folder / name).write_bytes(data)
            found = read_checkpoint(folder)
            assert isinstance(identify(found), ModelConfig) and found.tensors.keys() <= tensors.keys()

        return [text.encode() for text in contents[name]], check

    return own


def small_weights() -> dict:
    """The smallest tensors under the names of a network's."""
    import torch

    from mapanything.models.mapanything import MapAnything
    from mapanything.models.weights.names import canonical_name
    from tests.helpers.networks import TINY

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {canonical_name(name): tensor.shape for name, tensor in MapAnything(TINY).state_dict().items()}
    names = {*list(shapes)[::12], "scale_token", "encoder.model.cls_token", "info_sharing.norm.weight"}
    return {name: torch.randn([min(side, 5) for side in shape]) for name, shape in shapes.items() if name in names}


def frame_list(folder: Path) -> Made:
    """evaluate --frames."""
    path = folder / "frames.txt"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for entry in read_frames(path).values():
            assert len(entry) == 4 and entry[3].isdecimal()

    return [b"# a list\ntrain/2021_08_16_22_26_54/641/000069  # why\nvalidate/2021_08_16_22_26_54/000070\r\n"], check


def any_image(folder: Path) -> Made:
    """Images that people give to the network themselves: PNG and JPEG."""
    from PIL import Image

    path = folder / "picture"
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    originals = []
    for kind in ("PNG", "JPEG"):
        made = io.BytesIO()
        Image.fromarray(pixels).save(made, kind)
        originals.append(made.getvalue())

    def check(data: bytes) -> None:
        path.write_bytes(data)
        assert read_bytes(path) == data
        width, height = image_size(path, None)
        found = decode(path)
        assert found.dtype == np.uint8 and found.shape == (height, width, 3)

    return originals, check


def evaluation_record(folder: Path) -> Made:
    """Files that evaluate --overwrite replaces: nothing outside its folder, whatever summary.json names."""
    from mapanything.evaluation.run import prepare_out

    out, outside = folder / "out", folder / "outside.txt"
    (out / "plots").mkdir(parents=True)
    outside.write_text("not ours")

    def check(data: bytes) -> None:
        (out / "plots" / "metrics.png").write_bytes(b"")
        (out / "summary.json").write_bytes(data)
        prepare_out(out, overwrite=True)
        assert outside.exists()

    return [json.dumps({"files": ["plots/metrics.png", "../outside.txt"], "num_scenes": 3}, indent=1).encode()], check


def sample_marker(folder: Path) -> Made:
    """The marker that make-sample --overwrite reads before it deletes: nothing that it does not know goes."""
    from mapanything.opv2v.sample import writer

    foreign = folder / "opv2v_images" / "train" / "2021_01_01_00_00_00" / "1" / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("not ours")

    def check(data: bytes) -> None:
        (folder / writer.MARKER).write_bytes(data)
        writer._prepare(folder, overwrite=True)
        assert foreign.exists()

    return [json.dumps({"scenarios": {"train": ["2021_01_01_00_00_00"], "test": []}}).encode()], check


def infer_record(folder: Path) -> Made:
    """scene.json of a run that goes on: the scene is done, made anew, or refused."""
    (folder / "depth.npy").write_bytes(b"12345")
    record = {"mode": "single", "inputs": ["images"], "resolution": [84, 42], "model": {"model": "none", "sha": "ab"}}

    def check(data: bytes) -> None:
        (folder / "scene.json").write_bytes(data)
        assert is_done(folder, record) in (True, False)

    return [json.dumps(record | {"files": {"depth.npy": 5}}, indent=1).encode()], check
