"""Configs describe this package's objects and nothing else; paths on command lines are taken as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mapanything.errors import InputError
from mapanything.train.build import build
from mapanything.train.stages import compose_config


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "mapanything",
        "mapanything.train.run.os.system",  # by way of a module of ours
        "mapanything.train.stages.Path",  # a name that a module of ours imports
        "mapanything.train.stages.yaml.unsafe_load",
        "mapanything_evil.run",
        "mapanything.errors",  # a module
        "mapanything.train.stages.STAGES",
        "",
        3,
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_target_outside_of_the_package_is_refused(tmp_path: Path, target: object, inside: bool) -> None:
    entry: dict[str, object] = {"_target_": target, "path": str(tmp_path / "made"), "_args_": [f"touch {tmp_path / 'made'}"]}
    outer: dict[str, object] = {"_target_": "mapanything.train.losses.Loss", "terms": {"a": [{"b": entry}]}}
    with pytest.raises(InputError, match=r"loss: (_target_ is|there is no) "):
        build(OmegaConf.create(outer if inside else entry), "loss")
    assert list(tmp_path.iterdir()) == []


def test_what_the_configs_name_is_built() -> None:
    loss = build(compose_config([]).loss.train, "loss.train")
    assert type(loss).__module__ == "mapanything.train.losses"


@pytest.mark.parametrize(
    "name", ["实验", "my run (v2)", "lr=5e-5", "run#1", "a,b", "[x]", "{x}", "it's", "a\\b", "a\\'b", "a: b", '"q"', "*?;|<>"]
)
def test_a_path_is_taken_as_it_is(name: str) -> None:
    for path in (f"/disk/{name}", f"/disk/{name}/run"):
        assert compose_config([f"output_dir={path}"]).output_dir == path


def test_home_is_home_and_what_hydra_understands_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home of/me")
    assert compose_config(["output_dir=~/run"]).output_dir == "/home of/me/run"
    config = compose_config(["dataset.resolution=[84,56]", "output_dir=${machine.root_experiments_dir}/x=y"])
    assert list(config.dataset.resolution) == [84, 56] and config.output_dir == f"{config.machine.root_experiments_dir}/x=y"
    assert compose_config(["+train_params.submodule_lr={encoder: 1e-6}"]).train_params.submodule_lr == {"encoder": 1e-6}
    assert "weight" not in compose_config(["~loss.train.terms.mask.weight"]).loss.train.terms.mask
