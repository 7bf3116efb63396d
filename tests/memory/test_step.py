"""The memory plan against memory that was really taken: by the CPU's allocator, by DDP, by a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from mapanything.errors import InputError
from mapanything.memory import step
from mapanything.memory.ledger import Ledger
from mapanything.memory.peak import GIB, STRATEGIES, Overhead, Shape, Trace
from mapanything.memory.step import trace_step
from mapanything.models.layers import Attention
from mapanything.train.distributed import Layout, Process, wrap
from mapanything.train.optim import OptimConfig, make_optimizer
from mapanything.train.stages import compose_config

SHAPE = Shape(views=3, batch=2, width=126, height=98)
CHECKPOINTING = tuple(f"model.{part}.gradient_checkpointing=true" for part in ("encoder", "multiview", "heads"))
WAYS = {
    "plain": (),
    "checkpointing": CHECKPOINTING,
    "frozen encoder": ("train_params=frozen_encoder",),
    "heads only": ("train_params=heads_only",),
}

GEOMETRIC = tuple(
    f"model.geometric_inputs.{name}_prob=0.5" for name in ("dropout", "ray_dirs", "depth", "cam", "sparse_depth")
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small, and hosts of tests busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(*overrides: str, model: str = "mapanything_tiny"):
    return compose_config(["stage=stage2", f"model={model}", *overrides])


def batch_bytes(views) -> int:
    return sum(x.untyped_storage().nbytes() for view in views for x in view.values() if isinstance(x, torch.Tensor))


def allocated(run: Callable[[], None]) -> tuple[int, int]:
    """The most bytes that the CPU's allocator gave out at once during `run`, and how many were left at its end.

    From the profiler, which sits in the allocator: it knows nothing of operators, and sees what they take for themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results  # torch's stubs do not know all of it
    events = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most, now


def real_step(overrides: tuple[str, ...], shape: Shape, amp: bool, model: str = "mapanything_tiny"):
    """Objective, its batch, and what a real step of it on the CPU allocated."""
    objective = step.random_objective(config(*overrides, model=model), amp)
    views = step.make_batch(shape, "cpu")
    most, left = allocated(lambda: step.run_step(objective, views))
    return objective, views, most, left


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_plan_is_what_the_cpu_allocates(way: str, amp: bool) -> None:
    objective, views, most, left = real_step(WAYS[way], SHAPE, amp)
    planned = trace_step(config(*WAYS[way]), SHAPE, cuda=False, amp=amp)
    # The plan counts in pieces of 512 bytes; that is 0.2 % here, where tensors are small.
    assert planned.alone.total == pytest.approx(most + batch_bytes(views), rel=0.015)
    assert planned.trained == pytest.approx(left, abs=100_000)  # the gradients; and the loss's small change
    assert planned.weights == sum(x.untyped_storage().nbytes() for x in [*objective.parameters(), *objective.buffers()])
    optimizer = make_optimizer(objective.model, OptimConfig.of(config(*WAYS[way]).train_params))
    optimizer.step()
    state = sum(x.nbytes for values in optimizer.state.values() for x in values.values() if x.ndim)
    assert planned.peak("single").parts["optimizer"] == state


@pytest.mark.slow
def test_plan_is_what_the_cpu_allocates_for_v1() -> None:
    shape = Shape(views=2, batch=1, width=126, height=98)
    objective, views, most, _ = real_step(CHECKPOINTING[:1], shape, True, "mapanything_v1")
    planned = trace_step(config(*CHECKPOINTING[:1], model="mapanything_v1"), shape, cuda=False, amp=True)
    assert planned.alone.total == pytest.approx(most + batch_bytes(views), rel=0.015)
    assert planned.weights == sum(x.untyped_storage().nbytes() for x in [*objective.parameters(), *objective.buffers()])


@pytest.fixture
def one_process() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not among the names that it exports
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_plan_of_a_strategy_is_what_its_wrapper_allocates(strategy: str) -> None:
    """The second step, with the gradients' buckets and the optimizer's state there: what comes and goes on top of them."""
    objective = step.random_objective(config(), amp=False)
    process = Process(0, 0, 1, torch.device("cpu"), control=dist.group.WORLD)
    module = wrap(objective, Layout(1, 1, "cpu", strategy, dist.default_pg_timeout), process)
    optimizer = make_optimizer(objective.model, OptimConfig.of(config().train_params))
    views = step.make_batch(SHAPE, "cpu")

    def update() -> None:
        step.run_step(module, views)
        clip_grad_norm_([p for p in objective.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):  # until DDP has put its buckets in order
        update()
    most, left = allocated(update)
    assert left == pytest.approx(0, abs=100_000)
    peak = trace_step(config(), SHAPE, cuda=False, amp=False).peak(strategy, 1)
    planned = peak.moving - batch_bytes(views)
    assert planned == pytest.approx(most, rel=0.03 if strategy == "ddp" else 0.25)


def test_gradients_are_counted_where_the_strategy_holds_them() -> None:
    planned = trace_step(config(), SHAPE)
    single, ddp = planned.peak("single"), planned.peak("ddp", 5)
    assert planned.alone.total <= planned.shared.total + planned.trained
    assert ddp.grouped["gradients"] == planned.trained and ddp.total >= single.total
    halves = [planned.peak("fsdp", n).grouped["static"] for n in (1, 2, 4)]
    assert halves[0] == pytest.approx(2 * halves[1], abs=8) and halves[1] == pytest.approx(2 * halves[2], abs=8)
    for strategy, world in (("zero", 2), ("ddp", 0)):
        with pytest.raises(InputError, match="give one of"):
            planned.peak(strategy, world)


def test_everything_that_saves_memory_saves_memory() -> None:
    def peak(*overrides: str, shape: Shape = SHAPE) -> int:
        return trace_step(config(*overrides), shape).peak("ddp", 2).total

    plain = peak()
    assert peak(*CHECKPOINTING) < peak(*CHECKPOINTING[:2]) < peak(CHECKPOINTING[0]) < plain
    assert peak("train_params=heads_only") < peak("train_params=frozen_encoder") < plain
    assert peak(shape=Shape(4, 2, 126, 98)) > plain < peak(shape=Shape(3, 2, 140, 98))


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.vehicle_id.num_roles=7",),
        ("model.geometric_inputs.overall_prob=0.9", *GEOMETRIC),
        ("loss=overall_loss_highpm_plus_rel_pose_no_conf_no_ref_view",),
        ("+loss/option=height_prior",),
        ("train_params.amp=fp32",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_configuration_can_be_traced(overrides: tuple[str, ...]) -> None:
    assert trace_step(config(*overrides), SHAPE).peak("ddp").total > trace_step(config(*CHECKPOINTING), SHAPE).weights


def test_attention_saves_bf16_and_the_rows_sums_as_on_cuda() -> None:
    def kept(cuda: bool) -> int:
        with FakeTensorMode():
            attention, x = Attention(192, 3), torch.empty(2, 3, 100, 64, requires_grad=True)
            if cuda:
                step.as_on_cuda(attention)
            ledger = Ledger([x], [])
            with torch.autocast("cpu", torch.bfloat16), ledger:
                out = attention.kernel(x, x, x)
                assert out.dtype == torch.bfloat16
        return ledger.alone.total

    rows, bf16 = 2 * 3 * 100, 2 * 3 * 100 * 64 * 2
    # Queries, keys and values in bf16 (autocast's copies), the output, a float32 per row; random state and rounding.
    assert 4 * bf16 + 4 * rows <= kept(cuda=True) <= 4 * bf16 + 4 * rows + 8 * 512
    assert kept(cuda=False) != kept(cuda=True)


def test_nothing_is_left_replaced() -> None:
    trace_step(config(), SHAPE)
    assert Attention(4, 1).kernel is nn.functional.scaled_dot_product_attention


def test_measuring_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="no GPU"):
        step.measure_step(config(), SHAPE, "single")


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", ["plain", "checkpointing"])
def test_plan_is_what_a_gpu_takes(way: str, strategy: str) -> None:
    shape = Shape(views=4, batch=1, width=448, height=252)
    model = config(*WAYS[way], model="mapanything_v1")
    planned: Trace = trace_step(model, shape)
    measured = step.measure_step(model, shape, strategy)
    total = planned.peak(strategy, 1).total
    # Below by no more than what is planned for workspaces. One process of FSDP gathers nothing, several would.
    assert measured.tensors <= total + Overhead().libraries_gib * GIB
    assert total <= (1.25 if strategy == "fsdp" else 1.1) * measured.tensors
