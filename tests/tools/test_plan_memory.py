"""`plan_memory`: its table, its advice, and what it refuses. The figures themselves: tests/train/test_memory.py."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

import pytest

from mapanything.errors import InputError
from mapanything.tools import plan_memory
from mapanything.tools.plan_memory import MOST, WAYS, Planner
from mapanything.train.memory import GIB, Shape, Snapshot, Trace
from mapanything.train.stages import compose_config

FEW = ["--model", "mapanything_tiny", "--views", "2", "--batch", "1", "--resolution", "56x42", "--jobs", "1"]


def planner(*arguments: str) -> Planner:
    """The planner of a command line, before anything is traced."""
    made: list[Planner] = []
    original = Planner.read
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Planner, "read", lambda args: made.append(original(args)) or made[0])
        patched.setattr(Planner, "print_table", lambda self: 0)
        plan_memory.main([*arguments, "--jobs", "1"])
    return made[0]


@dataclass
class Made:
    """Traces out of thin air: GiB by images, for what is checkpointed and learned."""

    fixed: float = 4.0
    per_image: float = 1.0

    def __call__(self, overrides: list[str], shape: Shape) -> Trace:
        saving = 1 + sum(entry.endswith("gradient_checkpointing=true") for entry in overrides)
        learned = 0.2 if "train_params=heads_only" in overrides else 0.5 if "train_params=frozen_encoder" in overrides else 1
        size = round((self.fixed * learned + self.per_image * shape.images * learned / saving) * GIB)
        snapshot = Snapshot(size, {"activations:encoder": size}, "forward")
        return Trace(shape, GIB, round(GIB * learned), 0, 0, 0, 0, snapshot, snapshot)


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
    assert planner("--stage", stage).stage_shapes == [Shape(*shape) for shape in shapes]


def test_advice_prefers_recomputing_then_dividing_then_freezing(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice(gpu_gb: float, **made: float) -> list[tuple[str, str, str]]:
        monkeypatch.setattr(plan_memory, "_trace", Made(**made))
        plan = planner("--gpu-gb", str(gpu_gb))
        return [(way.learns, way.checkpointing, strategy) for way, strategy in plan.advised()]

    assert advice(40) == [("everything", "none", "ddp")]
    assert advice(17) == [("everything", "encoder", "ddp")]
    assert advice(12) == [("everything", "encoder, multi-view", "fsdp")]
    assert advice(8)[0][0] == "all but the encoder"
    assert advice(5.4)[0][0] == "heads only"
    assert advice(3) == []
    tight = advice(13.3)
    assert tight[0] == ("everything", "encoder, multi-view, heads", "ddp") and len(tight) == 2


def test_advised_command_is_that_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed command composes to the batches that were planned, checkpointed and frozen as the table says."""
    monkeypatch.setattr(plan_memory, "_trace", Made())
    plan = planner("--world-size", "3")
    for way in WAYS:
        for strategy in ("ddp", "fsdp"):
            words = shlex.split(plan._command(way, strategy))
            assert words[:4] == ["./invoke", "train", "--stage", "3"] and set(words[4::2]) <= {"-o"}
            config = compose_config(["stage=stage3", *words[5::2]])
            again = shlex.split(plan._command(way, strategy, task=False))
            assert again[:3] == ["python", "-m", "mapanything.train.training"] and compose_config(again[3:]) == config
            assert config.train_params.max_num_of_imgs_per_gpu == 12
            assert (config.distributed.strategy, config.distributed.world_size) == (strategy, 3)
            plan.config = config
            assert plan.configured() is way


@pytest.mark.parametrize(("fixed", "each"), [(2, 0.5), (14, 1), (2, 0.05), (2, 9), (25, 1), (17.5, 0.01), (0, 3)])
def test_limit_is_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch, fixed: float, each: float) -> None:
    traced: list[Shape] = []
    made = Made(fixed, each)
    monkeypatch.setattr(plan_memory, "_trace", lambda o, shape: (traced.append(shape), made(o, shape))[1])
    plan = planner("--world-size", "1")

    def shape(n: int) -> Shape:
        return Shape(n, 1, 448, 252)

    found = plan._most(shape, WAYS[0], "single", 10)
    assert len(traced) <= 6
    assert found == max((n for n in range(1, MOST + 1) if plan.fits(WAYS[0], shape(n), "single")), default=0)


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
