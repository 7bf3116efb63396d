"""Every config builds what it says; only the smoke config may touch the tests' sample; no path is absolute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mapanything.datasets.opv2v import OPV2VCoopDataset, OPV2VDataset
from mapanything.errors import InputError
from mapanything.train.distributed import lay_out
from mapanything.train.objective import build_objective
from mapanything.train.optim import OptimConfig
from mapanything.train.stages import compose_config

CONFIGS = Path(__file__).parents[1] / "configs"
MACHINES = sorted(path.stem for path in (CONFIGS / "machine").glob("*.yaml"))
DATASETS = {"opv2v_ft": OPV2VDataset, "opv2v_coop_ft": OPV2VCoopDataset, "opv2v_ft_smoke": OPV2VDataset}


def composed(dataset: str, *overrides: str, machine: str = "default"):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=[f"+machine={machine}", f"+dataset={dataset}", *overrides])


def test_every_dataset_config_is_tested():
    assert sorted(DATASETS) == sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))


def overrides_of(file: Path) -> list[str]:
    """Overrides that choose a group's file; what is added to a choice needs a plus sign, parts of others can't be chosen."""
    group = file.parent.relative_to(CONFIGS).as_posix()
    return [f"{'+' if group == 'loss/option' else ''}{group}={file.stem}", "model.pretrained=null"]


CHOICES = [path for path in sorted(CONFIGS.rglob("*/*.yaml")) if path.parent.name not in ("base", "terms")]


@pytest.mark.parametrize("file", CHOICES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_choice_builds(file):
    config = compose_config(overrides_of(file))
    assert lay_out(config.distributed, gpus=8).world_size == config.distributed.world_size
    if file.stem.startswith("vehicle_id"):
        config.model.vehicle_id.num_roles = 7  # whose embeddings are to learn
    with torch.device("meta"):
        objective, counts = build_objective(config, OptimConfig.of(config.train_params), amp=False)
    assert counts["trained"] > 0 and all(criterion.terms for criterion in objective.criteria.values())
    assert config.machine.num_workers > 0 and not Path(config.output_dir).is_absolute()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_dataset_configs_build(dataset, machine, generated_root, generated_depth):
    overrides = [f"machine.opv2v_images_root={generated_root}", f"machine.opv2v_depth_root={generated_depth}"]
    config = composed(dataset, *overrides, machine=machine)
    for part in ("train", "validate"):
        built = instantiate(config.dataset[part])
        assert type(built) is DATASETS[dataset] and len(built) > 0
        views = built[0]
        assert views[0]["img"].shape == (3, config.dataset.resolution[1], config.dataset.resolution[0])
        assert len(views) == config.dataset.num_views and views[0]["valid_mask"].any()


def test_stage_3_overrides_of_the_notes(generated_root, generated_depth):
    config = composed(
        "opv2v_coop_ft",
        f"machine.opv2v_images_root={generated_root}",
        f"machine.opv2v_depth_root={generated_depth}",
        "dataset.coop_min_agents=1",
        "dataset.coop_min_num_views=4",
        "dataset.coop_max_num_views=null",
        "dataset.num_views=10",
    )
    built = instantiate(config.dataset.train)
    assert (built.coop.coop_min_agents, built.min_views(0), built.coop.num_views) == (1, 4, 10)
    for count in range(4, built.max_views(0) + 1):
        assert len(built[0, count]) == count


@pytest.mark.parametrize("dataset", ["opv2v_ft", "opv2v_coop_ft"])
def test_only_the_smoke_config_trains_on_fixtures(dataset, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    fixtures = "tests/fixtures/sample_opv2v"
    overrides = [
        f"machine.opv2v_images_root={fixtures}/opv2v_images",
        f"machine.opv2v_depth_root={fixtures}/opv2v_depth",
    ]
    with pytest.raises(InstantiationException, match="never get into training") as error:
        instantiate(composed(dataset, *overrides).dataset.train)
    assert isinstance(error.value.__cause__, InputError)
    smoke = composed("opv2v_ft_smoke")
    assert len(instantiate(smoke.dataset.train)) > 0
    assert (CONFIGS / "dataset/opv2v_ft_smoke.yaml").read_text().startswith("# DEBUG ONLY")


def test_paths_are_relative_and_nobody_is_named():
    for path in CONFIGS.rglob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"(?m)^[^#\n]*:\s*['\"]?(/|~)", text), path
        assert "home" not in text and "eval" not in text.replace("evaluat", ""), path
    for machine in MACHINES:
        values = OmegaConf.to_container(composed("opv2v_ft", machine=machine).machine)
        assert isinstance(values, dict) and not any(str(value).startswith(("/", "~")) for value in values.values())
