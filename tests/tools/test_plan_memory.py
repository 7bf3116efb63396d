"""`plan_memory`: its table, its advice, and what it refuses. The figures themselves: tests/memory."""

from __future__ import annotations

import json
import shlex

import pytest

from mapanything.errors import InputError
from mapanything.memory.peak import Shape
from mapanything.memory.search import MOST, WAYS, Search
from mapanything.tools import plan_memory
from mapanything.train.stages import compose_config

FEW = ["--model", "mapanything_tiny", "--views", "2", "--batch", "1", "--resolution", "56x42", "--jobs", "1"]


def asked(*arguments: str) -> Search:
    """The search that the command line's arguments ask for, before anything is traced."""
    made: list[Search] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan_memory, "print_table", lambda search: made.append(search) or 0)
        plan_memory.main([*arguments, "--jobs", "1"])
    return made[0]


def test_table_advice_and_limits_of_a_tiny_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_memory.main([*FEW, "--gpu-gb", "4"]) == 0
    out = capsys.readouterr().out
    assert "stage 3, mapanything_tiny: 0.005 billion weights" in out and "5 GPUs of 4 GiB" in out
    assert sum(line.startswith(("everything", "all but", "heads only")) for line in out.splitlines()) == len(WAYS)
    assert "0.5 for CUDA" in out and "<- as configured" in out
    assert f"one scene of up to {MOST} (and more) views" in out
    assert "./invoke train --stage 3 -o model=mapanything_tiny -o model.encoder.gradient_checkpointing=false" in out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_memory.main([*FEW, "--gpu-gb", "1"]) == 1
    assert "nothing fits on 1 GiB: lower train_params.max_num_of_imgs_per_gpu" in capsys.readouterr().out


def test_json_has_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_memory.main([*FEW, "--json", "--world-size", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["cells"]) == len(WAYS) and told["world_size"] == 1
    cell = told["cells"][0]
    assert cell["strategy"] == "single" and cell["fits"] and cell["bytes"]["weights"] > 4e6


@pytest.mark.parametrize(
    ("stage", "shapes"),
    [
        ("1", [(4, 1, 518, 392)]),
        ("2", [(8, 1, 448, 252)]),
        ("3", [(10, 1, 448, 252), (6, 2, 448, 252), (4, 3, 448, 252)]),
    ],
)
def test_stages_batches(stage: str, shapes: list[tuple[int, int, int, int]]) -> None:
    """The budget's batches that no other one contains."""
    assert asked("--stage", stage).stage_shapes == [Shape(*shape) for shape in shapes]


def test_advised_command_is_that_plan() -> None:
    """The printed command composes to the batches that were planned, checkpointed and frozen as the table says."""
    search = asked("--world-size", "3")
    for way in WAYS:
        for strategy in ("ddp", "fsdp"):
            words = shlex.split(plan_memory.task_command(search, way, strategy))
            assert words[:4] == ["./invoke", "train", "--stage", "3"] and set(words[4::2]) <= {"-o"}
            config = compose_config(["stage=stage3", *words[5::2]])
            again = shlex.split(plan_memory.module_command(search, way, strategy))
            assert again[:3] == ["python", "-m", "mapanything.train.training"] and compose_config(again[3:]) == config
            assert config.train_params.max_num_of_imgs_per_gpu == 12
            assert (config.distributed.strategy, config.distributed.world_size) == (strategy, 3)
            search.config = config
            assert search.configured() is way


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu-gb", "-3"], "--gpu-gb -3: give a number above 0"),
        (["--gpu-gb", "nan"], "--gpu-gb nan: give"),
        (["--views", "4,x"], "--views x: give"),
        (["--resolution", "448"], "give WIDTHxHEIGHT"),
        (["--resolution", "450x252"], "both multiples of 14"),
        (["--model", "mapanything_v9"], "configuration: .*mapanything_v9"),
        (["-o", "model.encoder.depht=3"], "configuration: .*depht"),
        (["--world-size", "0"], "--world-size 0: give"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        plan_memory.main(arguments)
    assert "\n" not in str(error.value)


def test_several_processes_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def told(jobs: str) -> str:
        plan_memory.main([*FEW[:-1], jobs, "--json"])
        return capsys.readouterr().out

    assert told("1") == told("2")


@pytest.mark.gpu
def test_measured_step_is_within_ten_percent() -> None:
    arguments = ["--model", "mapanything_v1", "--views", "4", "--batch", "1", "--resolution", "448x252", "--measure"]
    assert plan_memory.main(arguments) == 0
