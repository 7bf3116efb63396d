"""Sizes and switches of a network: plain numbers, checked wherever they are put together.

Every entry is a width, a depth or a switch. The widths and depths of the networks that we know stand in configs/model/*.yaml,
which Hydra reads for `model=NAME` and `architecture(NAME)` without Hydra; here are their meaning and their limits. Upstream's
own, longer config is translated in weights/upstream.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from omegaconf import OmegaConf

from mapanything.errors import InputError

PATCH = 14  # pixels along one side of a patch; a property of DINOv2 and of the dense encoders
FFN_KINDS = ("mlp", "swiglu")
MOST, MOST_BLOCKS = 100_000, 200  # no width or number of anything is larger; no network of this kind is deeper
CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@dataclass(frozen=True)
class _Section:
    """A part of the config that can be read from and written to plain dictionaries; `place` is its name in messages."""

    place: ClassVar[str] = "model"

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check_kind(f"{self.place}.{entry.name}", getattr(self, entry.name), str(entry.type))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a (nested) mapping such as a Hydra config; a switch that is not given is off.

        Raises:
            InputError: an entry that does not exist or is missing, or a value that cannot be.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{cls.place}={_short(values)}: should be a group of entries")
        kinds = get_type_hints(cls)
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}  # name: has to be there
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            raise InputError(f"{cls.place}.{unknown[0][:60]}: no such entry; there are {', '.join(known)}")
        missing = [name for name, needed in known.items() if needed and name not in values]
        if missing:
            raise InputError(f"{cls.place}.{missing[0]}: is missing")
        read: dict[str, Any] = {}
        for name, value in values.items():
            if issubclass(kinds[name] if isinstance(kinds[name], type) else str, _Section):
                read[name] = kinds[name].from_dict(value)
            else:
                read[name] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, for YAML and JSON."""
        return _plain(asdict(self))

    def updated(self, overrides: Mapping[str, Any]) -> Self:
        """Another config, with other values for the entries of a nested mapping."""
        return self.from_dict(_merged(self.to_dict(), overrides))


def _check_kind(name: str, value: Any, kind: str) -> None:
    """Raises InputError where a value is not of its entry's kind, or a number that cannot be."""
    least = 0 if name.endswith((".num_roles", ".taps", ".pose_blocks")) else 1
    most = MOST_BLOCKS if name.endswith((".depth", ".pose_blocks")) else MOST

    def is_count(number: Any) -> bool:
        return type(number) is int and least <= number <= most

    def is_number(number: Any) -> bool:
        return type(number) in (int, float) and abs(number) <= MOST

    fits, expected = {
        "bool": (isinstance(value, bool), "true or false"),
        "int": (is_count(value), f"a whole number from {least} to {most}"),
        "float": (is_number(value), "a number"),
        "float | None": (value is None or is_number(value), "a number"),
        "tuple[int, ...]": (isinstance(value, tuple) and all(map(is_count, value)), f"whole numbers from {least} to {most}"),
        "str": (isinstance(value, str), "a word"),
    }.get(kind, (isinstance(value, _Section), "a group of entries"))
    if not fits:
        raise InputError(f"{name}={_short(value)}: give {expected}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return list(values) if isinstance(values, tuple) else values


def _merged(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in overrides.items():
        own = values.get(name)
        values[name] = _merged(own, value) if isinstance(own, dict) and isinstance(value, Mapping) else value
    return values


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise InputError(f"model config: {problem}")


def _check_transformer(config: EncoderConfig | MultiViewConfig, name: str) -> None:
    _check(config.ffn in FFN_KINDS, f"{name}.ffn={config.ffn!r}; give one of {', '.join(FFN_KINDS)}")
    _check(config.dim % config.num_heads == 0, f"{name}.dim={config.dim} is no multiple of num_heads={config.num_heads}")


@dataclass(frozen=True)
class EncoderConfig(_Section):
    """DINOv2, the first `depth` blocks of it."""

    place: ClassVar[str] = "model.encoder"
    dim: int
    num_heads: int
    depth: int
    ffn: str  # mlp or swiglu
    ffn_dim: int
    pos_grid: int  # the position embedding is a square of so many patches
    final_norm: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_transformer(self, "encoder")


@dataclass(frozen=True)
class MultiViewConfig(_Section):
    """The transformer over the tokens of all views; blocks alternate between all views and each view by itself."""

    place: ClassVar[str] = "model.multiview"
    dim: int
    num_heads: int
    depth: int
    ffn: str
    ffn_dim: int
    layer_scale: float | None  # start value; None: no such factor
    taps: tuple[int, ...]  # blocks whose output goes to the dense head, besides the last
    class_token: bool  # the encoder's class token of each view takes part
    reference_marker: bool = True  # view 0 is marked
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_transformer(self, "multiview")
        _check(
            len(self.taps) == 2 and 0 <= self.taps[0] < self.taps[1] < self.depth,
            f"multiview.taps={self.taps}: give two block numbers in order, below depth={self.depth}",
        )


@dataclass(frozen=True)
class GeometricInputsConfig(_Section):
    """Encoders of rays, depth and poses, and how often each input is offered to the network (docs/network.md §1.2).

    With the defaults (images only) none is, whatever the views hold. `infer` chooses by itself.
    """

    place: ClassVar[str] = "model.geometric_inputs"
    dense_dims: tuple[int, ...]
    global_dims: tuple[int, ...]
    overall_prob: float = 0.0
    dropout_prob: float = 1.0
    ray_dirs_prob: float = 0.0
    depth_prob: float = 0.0
    cam_prob: float = 0.0
    sparse_depth_prob: float = 0.0
    sparsification_removal_percent: float = 0.0
    depth_scale_norm_all_prob: float = 0.0
    pose_scale_norm_all_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.probabilities():
            value = getattr(self, name)
            _check(0 <= value <= 1, f"geometric_inputs.{name}={value}: give a number from 0 to 1")
        _check(len(self.dense_dims) == 3 and len(self.global_dims) == 3, "dense_dims and global_dims have three widths each")

    @staticmethod
    def probabilities() -> tuple[str, ...]:
        """The names of the nine numbers."""
        return tuple(f.name for f in fields(GeometricInputsConfig) if f.name.endswith(("_prob", "_percent")))


@dataclass(frozen=True)
class HeadsConfig(_Section):
    """Dense (DPT), pose and scale heads."""

    place: ClassVar[str] = "model.heads"
    dpt_dim: int
    dpt_layer_dims: tuple[int, ...]
    pose_blocks: int
    scale_dim: int
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(len(self.dpt_layer_dims) == 4, f"heads.dpt_layer_dims={self.dpt_layer_dims}: give four widths")
        _check(self.dpt_dim % 2 == 0, f"heads.dpt_dim={self.dpt_dim} is odd; the regressor halves it")


@dataclass(frozen=True)
class VehicleIdConfig(_Section):
    """Embeddings of vehicle roles (vehicle_id.py); `num_roles` 0 is off, as in the official networks."""

    place: ClassVar[str] = "model.vehicle_id"
    num_roles: int = 0
    shuffle: bool = True  # in training, the numbers of the vehicles other than the main agent are drawn anew for each sample


@dataclass(frozen=True)
class ModelConfig(_Section):
    """A whole network."""

    encoder: EncoderConfig
    multiview: MultiViewConfig
    geometric_inputs: GeometricInputsConfig
    heads: HeadsConfig
    vehicle_id: VehicleIdConfig = field(default_factory=VehicleIdConfig)

    def widths(self) -> dict[str, Any]:
        """Everything that the shapes of the weights show, as weights/identify.py reads it off them."""
        encoder, multi, heads = self.encoder, self.multiview, self.heads
        return {
            "encoder.dim": encoder.dim,
            "encoder.depth": encoder.depth,
            "encoder.ffn": (encoder.ffn, encoder.ffn_dim),
            "encoder.pos_grid": encoder.pos_grid,
            "encoder.final_norm": encoder.final_norm,
            "multiview.dim": multi.dim,
            "multiview.depth": multi.depth,
            "multiview.ffn": (multi.ffn, multi.ffn_dim),
            "multiview.layer_scale": multi.layer_scale is not None,
            "dense_dims": self.geometric_inputs.dense_dims,
            "global_dims": self.geometric_inputs.global_dims,
            "dpt_dim": heads.dpt_dim,
            "dpt_layer_dims": heads.dpt_layer_dims,
            "pose_blocks": heads.pose_blocks,
            "scale_dim": heads.scale_dim,
        }


@functools.cache
def architectures() -> dict[str, ModelConfig]:
    """The networks that we know, by name: `mapanything` (v1.1), `mapanything_v1`, `mapanything_tiny`, and what is put beside.

    Raises:
        InputError: a file of configs/model that is no network.
    """
    sections = {f.name for f in fields(ModelConfig)}
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        values = _read_yaml(path)
        found[path.stem] = ModelConfig.from_dict({name: values[name] for name in sections & set(values)})
    return found


def architecture(name: str) -> ModelConfig:
    """The config of one of `architectures`; InputError where there is none of that name."""
    if name not in architectures():
        raise InputError(f"{name}: no such network; there are {', '.join(architectures())}")
    return architectures()[name]


def _read_yaml(path: Path) -> dict[str, Any]:
    """One file with what it is based on, as Hydra would compose it."""
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    own = {str(name): value for name, value in values.items()}
    for base in own.pop("defaults", []):
        own = _merged(_read_yaml(path.with_name(f"{base}.yaml")), own)
    return own
