"""The budget sampler: every scene once, all ranks alike, and a resumed epoch that ends as the undisturbed one does."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mapanything.datasets.opv2v import OPV2VCoopDataset, OPV2VDataset
from mapanything.datasets.sampler import Batch, BudgetSampler
from mapanything.datasets.views import collate
from mapanything.errors import InputError


@dataclass
class FakeScenes:
    fewest: int
    most: list[int]
    others: list[int] = field(default_factory=list)  # scenes of another kind, which have just so many views

    def __len__(self) -> int:
        return len(self.most) + len(self.others)

    def min_views(self, scene: int) -> int:
        return self.fewest if scene < len(self.most) else self.max_views(scene)

    def max_views(self, scene: int) -> int:
        return [*self.most, *self.others][scene]


@st.composite
def scenes(draw) -> FakeScenes:
    fewest = draw(st.integers(1, 8))
    most = draw(st.lists(st.integers(fewest, draw(st.integers(fewest, 12))), min_size=1, max_size=150))
    return FakeScenes(fewest, most)


@st.composite
def mixed_scenes(draw) -> FakeScenes:
    dataset = draw(scenes())
    dataset.others = draw(st.lists(st.sampled_from([3, 4]), max_size=60))
    return dataset


layouts = st.tuples(st.integers(1, 6), st.integers(1, 3))  # world size, accumulation
budgets = st.integers(1, 30)
seeds = st.integers(0, 1000)
parts_of_runs = st.tuples(budgets, layouts, st.integers(0, 20))  # the last: steps
Step = tuple[Batch, ...]  # all shards of a step, in their order


def samplers(dataset, budget, layout, seed=0, epoch=0, shuffle=True) -> list[BudgetSampler]:
    """One for each rank."""
    world, accumulation = layout
    ranks = [
        BudgetSampler(dataset, budget, world_size=world, rank=r, accumulation=accumulation, seed=seed, shuffle=shuffle)
        for r in range(world)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    return ranks


def steps(ranks: list[BudgetSampler]) -> list[Step]:
    """The batches of all ranks, step by step."""
    accumulation = ranks[0].accumulation
    batches = [list(sampler.batches()) for sampler in ranks]
    assert len({len(own) for own in batches}) == 1, "ranks have different numbers of batches"
    out = []
    for k in range(0, len(batches[0]), accumulation):
        assert all([b.last for b in own[k : k + accumulation]] == [False] * (accumulation - 1) + [True] for own in batches)
        out.append(tuple(own[k + a] for a in range(accumulation) for own in batches))
    return out


def seen(some: list[Step]) -> list[tuple[int, int]]:
    """(scene, views) that count, idle shards' repetitions left out."""
    return [item for step in some for batch in step if batch.num_samples for item in batch.items]


# An epoch


@settings(max_examples=300, deadline=None)
@given(mixed_scenes(), budgets, layouts, seeds, seeds, st.booleans())
def test_an_epoch(dataset, budget, layout, seed, epoch, shuffle):
    epoch_steps = steps(samplers(dataset, budget, layout, seed, epoch, shuffle))
    items = seen(epoch_steps)
    assert sorted(scene for scene, _ in items) == list(range(len(dataset)))
    for scene, views in items:
        assert dataset.min_views(scene) <= views <= dataset.max_views(scene)
        assert shuffle or views == dataset.max_views(scene)
    before = 0
    for step in epoch_steps:
        assert len({batch.num_views for batch in step}) == 1
        counts = [batch.num_samples for batch in step]
        assert max(counts) - min(counts) <= 1 and sum(counts) > 0
        for batch in step:
            assert batch.items and {views for _, views in batch.items} == {batch.num_views}
            assert len(batch.items) == max(1, batch.num_samples)
            assert len(batch.items) == 1 or len(batch.items) * batch.num_views <= budget
            assert batch.num_samples_global == sum(counts) and batch.samples_before == before
            assert batch.weight == pytest.approx(batch.num_samples * len(step) / sum(counts))
            if not batch.num_samples:
                assert batch.items[0] in [item for other in step if other.num_samples for item in other.items]
        before += sum(counts)
    assert before == len(dataset)


@settings(max_examples=300, deadline=None)
@given(scenes(), budgets, layouts, seeds)
def test_shards_are_idle_only_where_there_is_no_other_way(dataset, budget, layout, seed):
    num_shards = layout[0] * layout[1]
    idle = [step for step in steps(samplers(dataset, budget, layout, seed)) if not all(b.num_samples for b in step)]
    room_for_two = budget // dataset.fewest >= 2
    if len(dataset) >= num_shards and room_for_two:
        assert not idle
    elif len(dataset) % num_shards == 0:
        assert not idle or room_for_two
    assert len(idle) <= 1 and all(step[0].num_views == dataset.fewest for step in idle)


@settings(max_examples=100, deadline=None)
@given(scenes(), budgets, layouts, seeds)
def test_few_scenes_have_fewer_views_than_they_drew(dataset, budget, layout, seed):
    """Against one shard, where nobody has to give way: fewer than a step per number of views, and nobody gets more."""
    num_shards = layout[0] * layout[1]
    drawn = dict(seen(steps(samplers(dataset, budget, (1, 1), seed))))
    got = dict(seen(steps(samplers(dataset, budget, layout, seed))))
    assert all(got[scene] <= views for scene, views in drawn.items())
    lowered = sum(got[scene] < views for scene, views in drawn.items())
    largest_step = num_shards * max(1, budget // dataset.fewest)
    assert lowered <= (num_shards - 1) * (max(dataset.most) - dataset.fewest) + largest_step


def test_scenes_of_two_kinds_share_an_epoch_but_no_step():
    """Stage 2 with single vehicles among its scenes: eight views stay eight, whatever the number of ranks leaves over."""
    dataset = FakeScenes(8, [8] * 33, [4] * 11)
    items = seen(steps(samplers(dataset, 8, (5, 1))))
    assert sorted(items) == [(scene, 8 if scene < 33 else 4) for scene in range(44)]


def test_views_are_drawn_evenly_from_what_each_scene_has():
    dataset = FakeScenes(4, [10] * 7000 + [4] * 500)
    counts = Counter(views for scene, views in seen(steps(samplers(dataset, 12, (5, 1)))) if scene < 7000)
    assert sorted(counts) == list(range(4, 11)) and all(abs(n - 1000) < 120 for n in counts.values())


@settings(max_examples=100, deadline=None)
@given(scenes(), budgets, st.integers(1, 6), st.integers(1, 3), seeds)
def test_accumulation_is_as_good_as_ranks(dataset, budget, world, accumulation, seed):
    def shards(layout):
        laid_out = steps(samplers(dataset, budget, layout, seed))
        return [[(b.items, b.weight, b.num_samples) for b in step] for step in laid_out]

    assert shards((world, accumulation)) == shards((world * accumulation, 1)) == shards((1, world * accumulation))


@given(st.integers(2, 8), layouts, seeds)
def test_validation_sees_the_same_on_any_number_of_ranks(fewest, layout, seed):
    dataset = FakeScenes(fewest, [fewest + i % 3 for i in range(31)])
    alone = seen(steps(samplers(dataset, 12, (1, 1), 0, 0, shuffle=False)))
    assert sorted(seen(steps(samplers(dataset, 12, layout, seed, seed, shuffle=False)))) == sorted(alone)


def test_epochs_differ_and_repeat():
    dataset = FakeScenes(4, [10] * 300)
    orders = {epoch: seen(steps(samplers(dataset, 12, (3, 1), 5, epoch))) for epoch in range(6)}
    assert len({tuple(order) for order in orders.values()}) == 6
    assert seen(steps(samplers(dataset, 12, (3, 1), 6, 0))) != orders[0]
    # Not only other batches: other numbers of views, and other scenes together.
    assert len({dict(order)[7] for order in orders.values()}) > 1
    (sampler,) = samplers(dataset, 12, (1, 1), 5, 3)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(4)
    sampler.set_epoch(3)
    assert list(sampler) == first


def test_the_weights_give_the_gradient_of_all_scenes():
    """Uneven and idle shards: what DDP averages, accumulated, is the gradient of the mean over the step's scenes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    for count, budget, layout in [(23, 16, (3, 2)), (3, 4, (5, 1)), (13, 4, (5, 1))]:
        dataset = FakeScenes(4, [4] * count)
        for step in steps(samplers(dataset, budget, layout)):
            weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
            scenes_of_step = [scene for batch in step if batch.num_samples for scene, _ in batch.items]
            expected = torch.autograd.grad((inputs[scenes_of_step] @ weights).exp().mean(), weights)[0]
            total = torch.zeros(3, dtype=torch.float64)
            for batch in step:
                loss = (inputs[[scene for scene, _ in batch.items]] @ weights).exp().mean()
                total += torch.autograd.grad(loss * batch.weight / layout[1], weights)[0] / layout[0]
            assert torch.allclose(total, expected)


# Resuming


def resumed(dataset, budget, layout, state, seed=0) -> list[BudgetSampler]:
    ranks = samplers(dataset, budget, layout, seed)
    for sampler in ranks:
        sampler.load_state_dict(json.loads(json.dumps(state)))
        sampler.set_epoch(state["epoch"])  # as a training loop does at the start of every epoch
    return ranks


@settings(max_examples=150, deadline=None)
@given(mixed_scenes(), budgets, layouts, seeds, st.integers(0, 200), st.booleans())
def test_resuming_goes_on_as_if_nothing_had_happened(dataset, budget, layout, seed, stop, other_split):
    ranks = samplers(dataset, budget, layout, seed, epoch=2)
    undisturbed = steps(ranks)
    stop = min(stop, len(undisturbed))
    for sampler in ranks:
        for _ in range(stop):
            sampler.finish_step()
    states = [sampler.state_dict() for sampler in ranks]
    assert all(state == states[0] for state in states)
    layout = (layout[1], layout[0]) if other_split else layout  # as many shards
    again = resumed(dataset, budget, layout, states[0], seed)
    assert [[b.items for b in s] for s in steps(again)] == [[b.items for b in s] for s in undisturbed[stop:]]
    assert len(again[0]) == (len(undisturbed) - stop) * layout[1] and again[0].state_dict() == states[0]


@settings(max_examples=150, deadline=None)
@given(mixed_scenes(), seeds, st.lists(parts_of_runs, min_size=1, max_size=4), budgets, layouts)
def test_an_epoch_over_changing_numbers_of_ranks_has_every_scene_once(dataset, seed, runs, last_budget, last_layout):
    items, state, ranks = [], None, []
    for budget, layout, stop in [*runs, (last_budget, last_layout, 10**6)]:
        ranks = samplers(dataset, budget, layout, seed) if state is None else resumed(dataset, budget, layout, state, seed)
        done = steps(ranks)[:stop]
        assert not done or done[0][0].samples_before == len(items)
        items += seen(done)
        for sampler in ranks:
            for _ in done:
                sampler.finish_step()
        state = ranks[0].state_dict()
    assert sorted(scene for scene, _ in items) == list(range(len(dataset)))
    assert all(dataset.min_views(scene) <= views <= dataset.max_views(scene) for scene, views in items)
    assert ranks[0].steps_left == 0 and list(ranks[0]) == []


def test_a_loader_that_runs_ahead_does_not_move_the_position():
    dataset = FakeScenes(2, [4] * 50)
    (sampler,) = samplers(dataset, 8, (1, 1))
    whole = list(sampler)
    batches = sampler.batches()
    done = []
    for batch in batches:
        done.append(batch.items)
        sampler.finish_step()
        if len(done) == 5:
            break
    assert sum(1 for _ in batches) == len(whole) - 5  # what the loader still had
    assert resumed(dataset, 8, (1, 1), sampler.state_dict())[0].steps_left == len(whole) - 5
    assert done + list(resumed(dataset, 8, (1, 1), sampler.state_dict())[0]) == whole
    sampler.set_epoch(1)
    assert sampler.steps_left > 0 and sampler.state_dict()["done"] == [[1, 8, 0]]
    for _ in range(sampler.steps_left):
        sampler.finish_step()
    with pytest.raises(RuntimeError, match="are finished"):
        sampler.finish_step()


@pytest.mark.parametrize(
    ("dataset", "options", "says"),
    [
        (FakeScenes(2, [4] * 49), {}, "num_samples is 50 there and 49 here"),
        (FakeScenes(2, [4] * 49 + [3]), {}, "scenes_crc32"),
        (FakeScenes(1, [4] * 50), {}, "scenes_crc32"),
        (FakeScenes(2, [4] * 50), {"seed": 1}, "seed is 0 there and 1 here"),
        (FakeScenes(2, [4] * 50), {"shuffle": False}, "shuffle"),
    ],
)
def test_a_position_in_other_data_is_refused(dataset, options, says):
    state = BudgetSampler(FakeScenes(2, [4] * 50), 8).state_dict()
    sampler = BudgetSampler(dataset, 8, **options)
    with pytest.raises(InputError, match=says):
        sampler.load_state_dict(state)


@pytest.mark.parametrize(
    ("dataset", "arguments"),
    [
        (FakeScenes(2, []), {}),
        (FakeScenes(2, [1]), {}),
        (FakeScenes(0, [1]), {}),
        (FakeScenes(1, [1]), {"max_num_of_imgs_per_gpu": 0}),
        (FakeScenes(1, [1]), {"rank": 1}),
        (FakeScenes(1, [1]), {"accumulation": 0}),
        (FakeScenes(1, [1]), {"seed": -1}),
    ],
)
def test_bad_arguments(dataset, arguments):
    with pytest.raises(ValueError, match=r"need 1 or more|not all have"):
        BudgetSampler(dataset, **({"max_num_of_imgs_per_gpu": 4} | arguments))


# With the data sets, and large


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["fixed", "coop_fixed", "coop_variable"])
def test_with_the_data_sets(generated_root, generated_depth, kind, workers):
    common = {"resolution": (56, 42), "split": "train"}
    if kind == "fixed":
        dataset = OPV2VDataset(generated_root, generated_depth, **common)
    elif kind == "coop_fixed":
        dataset = OPV2VCoopDataset(generated_root, generated_depth, **common)
    else:
        options = {"num_views": 10, "coop_min_agents": 1, "coop_min_num_views": 4, "coop_max_num_views": None}
        dataset = OPV2VCoopDataset(generated_root, generated_depth, **options, **common)
    sampler = BudgetSampler(dataset, 12, world_size=2, rank=1, accumulation=2)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        assert len(loader) == sampler.steps_left * 2 > 0
        for batch, views in zip(sampler.batches(), loader, strict=True):
            assert len(views) == batch.num_views and views[0]["img"].shape == (len(batch.items), 3, 42, 56)
            assert [scene for scene, _ in views[0]["idx"]] == [scene for scene, _ in batch.items]
            if batch.last:
                sampler.finish_step()
        assert sampler.steps_left == 0


def test_a_hundred_thousand_scenes():
    dataset = FakeScenes(4, np.random.default_rng(0).choice([4, 8, 10], 100_000).tolist())
    sampler = BudgetSampler(dataset, 12, world_size=5, rank=4)
    start = time.perf_counter()
    assert len(sampler) > 10_000
    assert time.perf_counter() - start < 10  # 0.02 s on an idle machine
