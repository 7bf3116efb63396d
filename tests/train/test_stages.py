"""The stages: the task's command and the notes' are one run; nobody starts without what comes before."""

from __future__ import annotations

import shlex
import sys
from itertools import pairwise

import pytest
from invoke.context import Context
from invoke.exceptions import Exit
from omegaconf import OmegaConf

import tasks
from mapanything.errors import InputError
from mapanything.train.stages import check_same_run, check_start, compose_config, identity, stage_of

# As the group's notes have them.
EXPERIMENTS = "${machine.root_experiments_dir}"
NOTES = {
    1: "machine=local3090 dataset=opv2v_ft model=mapanything loss=overall_loss "
    "model.pretrained='${machine.root_pretrained_checkpoints_dir}/facebook_map-anything-local.pth' "
    "train_params.max_num_of_imgs_per_gpu=4 train_params.lr=5e-5 train_params.epochs=5 "
    f"output_dir='{EXPERIMENTS}/opv2v_ft_stage1' distributed.world_size=4",
    2: "machine=local3090 dataset=opv2v_coop_ft model=mapanything loss=overall_loss "
    f"model.pretrained='{EXPERIMENTS}/opv2v_ft_stage1/checkpoint-best.pth' "
    "train_params.max_num_of_imgs_per_gpu=8 train_params.lr=3e-5 train_params.epochs=3 "
    f"output_dir='{EXPERIMENTS}/opv2v_coop_stage2_full' distributed.world_size=5",
    3: "machine=local3090 dataset=opv2v_coop_ft dataset.coop_min_agents=1 dataset.coop_min_num_views=4 "
    "dataset.coop_max_num_views=null dataset.num_views=10 model=mapanything loss=overall_loss "
    f"model.pretrained='{EXPERIMENTS}/opv2v_coop_stage2_full/checkpoint-best.pth' "
    "model.encoder.gradient_checkpointing=true train_params.max_num_of_imgs_per_gpu=12 train_params.lr=2e-5 "
    f"train_params.epochs=6 output_dir='{EXPERIMENTS}/opv2v_coop_stage3_varviews' distributed.world_size=5",
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that tasks would run."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(tasks, "run", lambda *command: ran.append(command))
    monkeypatch.setattr(sys, "argv", ["invoke"])
    return ran


def train(**given: object) -> None:
    """The task with these options, the others as when they are not given."""
    task = tasks.namespace.tasks["train"]
    assert isinstance(task, tasks.TableTask)
    task(Context(), **{option.key: given.get(option.key) for option in task.options})


@pytest.mark.parametrize("stage", NOTES)
def test_task_and_notes_are_one_run(stage, commands):
    train(stage=stage, machine="local3090", o=[])
    (command,) = commands
    assert command[:2] == ("-m", "mapanything.train.training")
    ours, notes = compose_config(command[2:]), compose_config(shlex.split(NOTES[stage]))
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(notes)
    assert stage_of(ours) == stage


def test_options_of_the_task(commands):
    train(
        stage=2,
        fresh=True,
        nodes="2",
        node_rank="1",
        rendezvous="host-0:29400",
        keep_global_batch=True,
        o=["dataset.num_views=9", "model.pretrained=null"],
    )
    config = compose_config(commands[0][2:])
    assert config.resume is False and config.dataset.num_views == 9 and config.model.pretrained is None
    assert (config.distributed.nodes, config.distributed.node_rank) == (2, 1)
    assert config.distributed.rendezvous == "host-0:29400" and config.distributed.keep_global_batch


def test_chain(commands):
    train(all=True, o=["model.pretrained=null", "train_params.epochs=1"])
    configs = [compose_config(command[2:]) for command in commands]
    assert [stage_of(config) for config in configs] == [1, 2, 3]
    assert configs[0].model.pretrained is None and {config.train_params.epochs for config in configs} == {1}
    for before, after in pairwise(configs):
        assert after.model.pretrained == f"{before.output_dir}/checkpoint-best.pth"


def test_overrides_of_single_stages_of_a_chain(commands):
    train(
        all=True,
        o=["train_params.lr=1e-3", "2,3:model.vehicle_id.num_roles=7", "3:train_params.lr=1e-4", "3:model.pretrained=a.pth"],
    )
    configs = [compose_config(command[2:]) for command in commands]
    assert [config.train_params.lr for config in configs] == [1e-3, 1e-3, 1e-4]
    assert [config.model.vehicle_id.num_roles for config in configs] == [0, 7, 7]
    assert configs[1].model.pretrained == f"{configs[0].output_dir}/checkpoint-best.pth"
    assert configs[2].model.pretrained == "a.pth"


@pytest.mark.parametrize("text", ["4:seed=1", "2,:seed=1", "stage2:seed=1", "2:seed", ":seed=1"])
def test_overrides_of_stages_that_are_none(text, commands):
    with pytest.raises(Exit, match="2,3:KEY=VALUE") as caught:
        train(all=True, o=[text])
    assert caught.value.code == 2 and not commands


def test_dry_run(commands, capsys):
    train(stage=1, dry_run=True, o=["a='b c'"])
    assert not commands
    assert capsys.readouterr().out == (
        """python -m mapanything.train.training stage=stage1 machine=default 'a='"'"'b c'"'"''\n"""
    )


@pytest.mark.parametrize("options", [{}, {"stage": 4}, {"stage": 1, "all": True}, {"stage": 1, "resume": True, "fresh": True}])
def test_contradictions(options, commands):
    with pytest.raises(Exit) as caught:
        train(**options)
    assert caught.value.code == 2 and not commands


@pytest.mark.parametrize(("stage", "message"), [(1, "official weights"), (2, "--stage 1` first"), (3, "--stage 2` first")])
def test_no_start_without_what_comes_before(stage, message, tmp_path):
    config = compose_config([f"stage=stage{stage}", f"machine.root_experiments_dir={tmp_path}"])
    with pytest.raises(InputError, match=message) as caught:
        check_start(config)
    assert str(config.model.pretrained) in str(caught.value) and "\n" not in str(caught.value)
    config.model.pretrained = None
    check_start(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_params.epoch=3", "Could not override"),
        ("dataset=opv2v", "dataset/opv2v"),
        ("machine.opv2v_images_root=${nowhere}", "nowhere"),
        ("epochs", "epochs"),
    ],
)
def test_bad_overrides_are_one_line(override, message):
    with pytest.raises(InputError, match=message) as caught:
        compose_config([override])
    assert "\n" not in str(caught.value)


def test_what_makes_another_run(tmp_path):
    before = identity(compose_config(["stage=stage2"]))
    harmless = [
        "machine=local3090",
        "model.encoder.gradient_checkpointing=true",
        "distributed.world_size=2",
        "train_params.lr=1e-6",
    ]
    check_same_run(before, compose_config(["stage=stage2", *harmless, "model.pretrained=null"]), tmp_path)
    for change, message in [
        ("stage=stage3", "stage: 2 -> 3"),
        ("model=mapanything_v1", "model.encoder.dim: 1536 -> 1024"),
        ("loss=overall_loss_highpm_plus_rel_pose", "loss.train.terms"),
        ("train_params.seed=1", "seed: 0 -> 1"),
        ("dataset.coop_main_agent=650", "coop_main_agent"),
    ]:
        with pytest.raises(InputError, match=message):
            check_same_run(before, compose_config(["stage=stage2", change]), tmp_path)


def test_a_run_of_before_an_option_was_there_is_the_same_run(tmp_path):
    before = identity(compose_config(["stage=stage2"]))
    for key in ("dataset.coop_single_share", "dataset.mask_reach"):
        del before[key]
    check_same_run(before, compose_config(["stage=stage2"]), tmp_path)
    for change in ("dataset.coop_single_share=0.25", "dataset.mask_reach=0.016"):
        with pytest.raises(InputError, match="None -> 0"):
            check_same_run(before, compose_config(["stage=stage2", change]), tmp_path)


@pytest.mark.parametrize("name", ["low_encoder_lr", "frozen_encoder", "heads_only", "vehicle_id_only"])
def test_variants_of_train_params(name):
    config = compose_config(["stage=stage3", f"train_params={name}"])
    assert config.train_params.epochs == 6 and config.train_params.lr == 2e-5
    standard = compose_config(["stage=stage3"])
    changed = {key for key in config.train_params if config.train_params[key] != standard.train_params[key]}
    assert changed and changed <= {"submodule_lr", "train_only"}
