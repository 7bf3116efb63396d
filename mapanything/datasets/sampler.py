"""Puts scenes into batches: one number of views per step, no scene dropped or seen twice, resumable at every step.

A *step* is what one update of the weights sees, on all ranks together. It is cut in `num_shards` = world size × accumulation
parts; a rank gets `accumulation` of them, one after the other. Everything follows from (seed, epoch, num_shards), so four
ranks, or one that accumulates four times, see the same steps.

How an epoch is laid out:
1. Each scene draws its number of views, uniformly from what it can give. This and the scenes' order know nothing of ranks.
   Scenes that differ in the fewest views that they may have are laid out apart from each other, by the rules that follow.
2. From the most views v down to the fewest, the scenes that drew v fill steps of num_shards × max(1, budget // v) scenes.
3. Of what is left over, at least one scene per shard makes a smaller step, its shards differing by one scene at the most.
   Fewer than that go down to the scenes with v - 1 views, and are shown with one view less.
4. At the fewest views there is no way down. The leftover joins another step, of the fewest views there is, and both together
   are cut in two steps, or one, with a scene or more in every shard.
5. Where even that fails (one scene fills the budget, or there are fewer scenes than shards), the shards that go without
   are *idle*: they repeat a scene of their step and count it 0. A step without a scene would leave the other ranks waiting.
6. The steps are shuffled.

DDP averages the ranks' gradients as if each had the same number of scenes. So multiply the mean loss of a shard by
`Batch.weight` (its scenes × num_shards / the step's scenes: 1 when all are even, 0 when idle) and divide it by `accumulation`:
the gradient is then that of the mean over all scenes of the step.

With shuffle=False (validation) every scene has its most views and rules 3 (down) and 4 are off: what is seen does not depend
on num_shards.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mapanything.errors import InputError


class Scenes(Protocol):
    """The questions that a data set has to answer: see `mapanything.datasets.scenes`."""

    def __len__(self) -> int: ...

    def min_views(self, scene: int) -> int: ...

    def max_views(self, scene: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One shard of one step.

    items: (scene, number of views) for `dataset[...]`, all with `num_views`. num_samples: scenes of this shard, 0 when idle;
    num_samples_global: of the whole step. samples_before: scenes of the epoch before this step, world-independent progress.
    weight: what to multiply the shard's mean loss with (see above). last: the step is complete with this batch.
    """

    items: list[tuple[int, int]]
    num_views: int
    num_samples: int
    num_samples_global: int
    samples_before: int
    weight: float
    last: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order: `scenes` (N,) of all steps, one after the other; step k has scenes[starts[k]:starts[k + 1]]."""

    scenes: NDArray[np.int64]
    starts: NDArray[np.int64]  # (S + 1,)
    views: NDArray[np.int64]  # (S,)

    def __len__(self) -> int:
        return len(self.views)

    def step(self, k: int) -> NDArray[np.int64]:
        return self.scenes[self.starts[k] : self.starts[k + 1]]


def plan_steps(
    scenes: NDArray[np.int64],
    views: NDArray[np.int64],
    min_views: NDArray[np.int64],
    num_shards: int,
    budget: int,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Lays scenes out in steps by the rules above.

    Args:
        scenes: (N,) in the order in which they are to be used. views: (N,) what each has drawn.
        min_views: (N,) the fewest that each may have.
        num_shards: parts of a step. budget: most images in a part, unless one scene has more.
        rng: shuffles the steps; None: they stay in falling number of views, and no scene gets fewer views than it drew.
    """
    layers: list[_Layer] = [(scenes[:0], [], 0)]  # of an epoch that is over, there are no others
    for fewest in np.unique(min_views)[::-1]:
        of_kind = min_views == fewest
        layers += _lay_out(scenes[of_kind], views[of_kind], int(fewest), num_shards, budget, rng is not None)
    return _assemble(layers, rng)


_Layer = tuple[NDArray[np.int64], list[int], int]  # scenes, the sizes of the steps they are cut in, views


def _lay_out(
    scenes: NDArray[np.int64], views: NDArray[np.int64], min_views: int, num_shards: int, budget: int, may_lower: bool
) -> list[_Layer]:
    """Rules 2 to 5 for scenes that may all have as few views as `min_views`."""
    layers: list[_Layer] = []
    waiting = scenes[:0]
    for v in range(int(views.max(initial=min_views)), min_views - 1, -1):
        pool = np.concatenate([waiting, scenes[views == v]])
        full, left = divmod(len(pool), _capacity(v, num_shards, budget))
        too_few = may_lower and 0 < left < num_shards
        waiting = pool[len(pool) - left :] if too_few else pool[:0]
        sizes = [_capacity(v, num_shards, budget)] * full + [left] * (left > 0 and not too_few)
        layers.append((pool[: len(pool) - len(waiting)], sizes, v))
    if len(waiting):
        layers.append(_place_last(waiting, layers, min_views, num_shards, budget))
    return layers


def _capacity(views: int, num_shards: int, budget: int) -> int:
    return num_shards * max(1, budget // views)


def _place_last(waiting: NDArray[np.int64], layers: list[_Layer], min_views: int, num_shards: int, budget: int) -> _Layer:
    """Fewer scenes than shards, which can't have fewer views (rules 4 and 5). May take the last step out of `layers`."""
    capacity = _capacity(min_views, num_shards, budget)
    donor = next((k for k in reversed(range(len(layers))) if layers[k][1]), None)
    if donor is None or capacity == num_shards:
        return waiting, [len(waiting)], min_views
    pool, sizes, views = layers[donor]
    layers[donor] = pool[: len(pool) - sizes[-1]], sizes[:-1], views
    joined = np.concatenate([pool[len(pool) - sizes[-1] :], waiting])
    # More than one step holds is more than 2 x num_shards, and less than two hold: either half is a step.
    half = len(joined) // 2
    return joined, [len(joined)] if len(joined) <= capacity else [len(joined) - half, half], min_views


def _assemble(layers: list[_Layer], rng: np.random.Generator | None) -> Plan:
    scenes = np.concatenate([pool for pool, _, _ in layers])
    sizes = np.array([size for _, sizes, _ in layers for size in sizes], dtype=np.int64)
    views = np.repeat([v for _, _, v in layers], [len(sizes) for _, sizes, _ in layers])
    if rng is not None:
        order = rng.permutation(len(sizes))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        scenes = scenes[np.argsort(np.repeat(place, sizes), kind="stable")]
        sizes, views = sizes[order], views[order]
    return Plan(scenes, np.concatenate([[0], np.cumsum(sizes)]), views)


class BudgetSampler(Sampler[list[tuple[int, int]]]):
    """Batches for one rank: `DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)`.

        sampler.set_epoch(epoch); dataset.set_epoch(epoch)
        for batch, views in zip(sampler.batches(), loader, strict=True):
            (loss(views) * batch.weight / sampler.accumulation).backward()     # with no_sync unless batch.last
            if batch.last:
                optimizer.step(); sampler.finish_step()

    `finish_step` is the position that `state_dict` saves: the loader's workers run ahead of training, so iterating can't be.

    Args:
        dataset: says how many views each of its scenes can have.
        max_num_of_imgs_per_gpu: budget of a batch; a scene that has more views is a batch of its own.
        world_size, rank: of this process. accumulation: batches of a rank per step.
        seed: same on all ranks. shuffle: random order and numbers of views in every epoch; off for validation.

    Raises:
        ValueError: arguments out of range, or a data set without scenes.
    """

    def __init__(
        self,
        dataset: Scenes,
        max_num_of_imgs_per_gpu: int,
        *,
        world_size: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if max_num_of_imgs_per_gpu < 1 or accumulation < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError(
                f"max_num_of_imgs_per_gpu={max_num_of_imgs_per_gpu}, accumulation={accumulation}, rank={rank}, "
                f"world_size={world_size}, seed={seed}: need 1 or more images and batches, rank < world_size and seed >= 0"
            )
        self.min_views, self.max_views = (
            np.array([of_scene(scene) for scene in range(len(dataset))], dtype=np.int64)
            for of_scene in (dataset.min_views, dataset.max_views)
        )
        if not len(self.max_views) or self.min_views.min() < 1 or (self.max_views < self.min_views).any():
            raise ValueError(f"{len(self.max_views)} scenes, of which not all have a view, or as many as they must")
        self.budget = max_num_of_imgs_per_gpu
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        # What was done of this epoch, as (num_shards, budget, steps): by earlier runs of another layout, and in this one.
        self._past: list[tuple[int, int, int]] = []
        self._done = 0
        self._laid_out: tuple[Plan, int] | None = None

    @property
    def num_shards(self) -> int:
        return self.world_size * self.accumulation

    @property
    def num_samples(self) -> int:
        """Scenes of an epoch, whatever the number of ranks."""
        return len(self.max_views)

    @property
    def steps_left(self) -> int:
        """Steps of this epoch that are not finished."""
        return len(self._plan()[0]) - self._done

    def __len__(self) -> int:
        """Batches that an iteration started now has."""
        return self.steps_left * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (batch.items for batch in self.batches())

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; if it is the present one, the position in it is kept (a resumed run)."""
        if epoch != self.epoch:
            self.epoch, self._past, self._done, self._laid_out = epoch, [], 0, None

    def batches(self) -> Iterator[Batch]:
        """This rank's batches of the steps that are not finished, in the order in which a loader gives them."""
        (plan, before), first = self._plan(), self._done  # now, not at the first next(): the position moves on meanwhile
        shards = range(self.rank, self.num_shards, self.world_size)
        return (self._batch(plan, before, k, shard) for k in range(first, len(plan)) for shard in shards)

    def finish_step(self) -> None:
        """The weights have seen the next step: it is not to come again."""
        if self.steps_left < 1:
            raise RuntimeError(f"all {len(self._plan()[0])} steps of epoch {self.epoch} are finished")
        self._done += 1

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, plain numbers; the same on all ranks."""
        done = [*self._past, (self.num_shards, self.budget, self._done)]
        return self._identity() | {"epoch": self.epoch, "done": [list(part) for part in done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        With the same num_shards and budget exactly the steps follow that would have followed; with others the scenes that
        were not seen yet, with the numbers of views they drew, laid out anew.

        Raises:
            InputError: the position is one in other data, or of another seed.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise InputError(
                    f"checkpoint's position in the epoch: {key} is {state.get(key)} there and {value} here; resume with the "
                    "data set and seed of that run, or start afresh"
                )
        done = [(int(shards), int(budget), int(steps)) for shards, budget, steps in state["done"] if steps]
        self._done = done.pop()[2] if done and done[-1][:2] == (self.num_shards, self.budget) else 0
        self.epoch, self._past, self._laid_out = int(state["epoch"]), done, None

    def _identity(self) -> dict[str, Any]:
        scenes = zlib.crc32(np.append(self.max_views, self.min_views).astype("<i8").tobytes())
        return {"num_samples": self.num_samples, "scenes_crc32": scenes, "seed": self.seed, "shuffle": self.shuffle}

    def _generator(self, *purpose: int) -> np.random.Generator:
        # spawn_key, because [seed, epoch] and [seed, epoch, 0], which a data set uses for its scene 0, are one seed to NumPy.
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch], spawn_key=(1, *purpose)))

    def _plan(self) -> tuple[Plan, int]:
        """The steps of this layout, and how many scenes were seen before the first of them."""
        if self._laid_out is None:
            scenes, views = np.arange(self.num_samples), self.max_views
            if self.shuffle:
                rng = self._generator(0)
                scenes = rng.permutation(self.num_samples)
                views = rng.integers(self.min_views, self.max_views, endpoint=True)
            plan = None
            for part, (num_shards, budget, steps) in enumerate([*self._past, (self.num_shards, self.budget, 0)]):
                rng = self._generator(1, part) if self.shuffle else None
                plan = plan_steps(scenes, views[scenes], self.min_views[scenes], num_shards, budget, rng)
                scenes = plan.scenes[plan.starts[steps] :]
            assert plan is not None  # the last part is always there
            self._laid_out = plan, self.num_samples - len(scenes)
        return self._laid_out

    def _batch(self, plan: Plan, before: int, k: int, shard: int) -> Batch:
        step, views = plan.step(k), int(plan.views[k])
        scenes = step[shard * len(step) // self.num_shards : (shard + 1) * len(step) // self.num_shards]
        chosen = scenes if len(scenes) else step[[shard % len(step)]]
        return Batch(
            items=[(scene, views) for scene in chosen.tolist()],
            num_views=views,
            num_samples=len(scenes),
            num_samples_global=len(step),
            samples_before=before + int(plan.starts[k]),
            weight=len(scenes) * self.num_shards / len(step),
            last=shard + self.world_size >= self.num_shards,
        )
