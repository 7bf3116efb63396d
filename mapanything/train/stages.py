"""The three stages: what each starts from, and what makes a run the same run when it is resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mapanything.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = (1, 2, 3)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """configs/train.yaml with Hydra overrides.

    Raises:
        InputError: an override that Hydra can't make sense of.
    """
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", [quoted(text) for text in overrides])
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"configuration: {error}") from error
    return config


def quoted(override: str) -> str:
    """An override whose value Hydra takes whole: quoted where its grammar has no such text, as of a folder `my run (v2)`.

    What Hydra understands (lists, mappings, quotes, interpolations) means what it means; commas outside of those would ask
    for several runs, and a `~/` is the home folder.
    """
    key, equals, value = override.partition("=")
    if not equals or key.startswith("~"):
        return override
    if value == "~" or value.startswith("~/"):
        value = str(Path(value).expanduser())
    try:
        if not OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override():
            return f"{key}={value}"
    except HydraException:
        pass
    text = re.sub(r"(\\*)('|\Z)", r"\1\1\2", value).replace("'", r"\'")  # backslashes count before a quote only
    return f"{key}='{text}'"


def stage_of(config: DictConfig) -> int:
    """The stage whose kind of training a config is: one vehicle, several with a fixed number of views, or a variable one."""
    if not str(config.dataset.train._target_).endswith("OPV2VCoopDataset"):
        return 1
    dataset = config.dataset
    most = dataset.num_views if dataset.coop_max_num_views is None else min(dataset.num_views, dataset.coop_max_num_views)
    return 2 if not dataset.allow_variable_view_count or dataset.coop_min_num_views >= most else 3


def check_start(config: DictConfig) -> None:
    """Checks that a fresh run has something to start from.

    Raises:
        InputError: the weights that a fresh run is to start from are not there.
    """
    pretrained = config.model.pretrained
    if pretrained is None or Path(pretrained).expanduser().exists():
        return
    stage = stage_of(config)
    predecessor = next((n for n in STAGES if Path(pretrained).parent == Path(_output_of(n, config))), None)
    if predecessor is not None and Path(pretrained).name == "checkpoint-best.pth":
        raise InputError(
            f"stage {stage} starts from {pretrained}, which is not there: run `./invoke train --stage {predecessor}` first, "
            "or give model.pretrained=FILE"
        )
    raise InputError(
        f"stage {stage} starts from {pretrained}, which is not there: fetch the official weights where there is internet "
        "(huggingface.co/facebook/map-anything, or map-anything-apache with its freer licence: config.json and "
        f"model.safetensors in one folder) and give model.pretrained={Path(pretrained).parent}/FOLDER; "
        "model.pretrained=null starts from random weights"
    )


def _output_of(stage: int, config: DictConfig) -> str:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        standard = compose("train", [f"stage=stage{stage}"])
    standard.machine.root_experiments_dir = config.machine.root_experiments_dir
    return str(standard.output_dir)


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def identity(config: DictConfig) -> dict[str, Any]:
    """The settings that a resumed run must share, flat: data selection, network, loss and seed; not places and speed."""
    values = plain(config)
    flat = flatten({"stage": stage_of(config)} | {key: values[key] for key in ("dataset", "model", "loss")})
    flat["train_params.seed"] = values["train_params"]["seed"]
    ignored = (".root", ".depth_root", ".exclude", ".pretrained", ".gradient_checkpointing", "allow_tests_only")
    return {key: value for key, value in flat.items() if not key.endswith(ignored)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changes, as `key: old -> new`."""
    keys = dict.fromkeys([*before, *now])
    return [f"{k}: {before.get(k)} -> {now.get(k)}" for k in keys if before.get(k) != now.get(k)]


def check_same_run(before: Mapping[str, Any], config: DictConfig, folder: Path) -> None:
    """Checks that a checkpoint is one of this run.

    Raises:
        InputError: the checkpoint in `folder` is that of another stage, network, data selection or loss.
    """
    # What an older checkpoint does not know, and is off here, is a newer option.
    now = {key: value for key, value in identity(config).items() if key in before or value not in (None, 0)}
    changed = differences(before, now)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{folder} holds another run ({'; '.join(changed[:3])}{more}): give another output_dir, the same settings, or "
            "resume=false (./invoke train --fresh), which puts that run aside"
        )
