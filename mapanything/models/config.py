"""What a network is made of: plain numbers, checked when they are put together.

`V1_1`, `V1` and `TINY` are the three architectures; configs/model/*.yaml say the same in Hydra's words. Every entry is a
width, a depth or a switch; upstream's own, longer config is translated in upstream.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Self

from mapanything.errors import InputError

PATCH = 14  # pixels along one side of a patch; a property of DINOv2 and of the dense encoders
FFN_KINDS = ("mlp", "swiglu")
MOST = 100_000  # no width, depth or number of anything is larger


class _Section:
    """A part of the config that can be read from and written to plain dictionaries."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model") -> Self:
        """From a (nested) mapping such as a Hydra config; what is not given keeps its default.

        Raises:
            InputError: an entry that does not exist, or a value that cannot be.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{where}={values!r}: should be a group of entries")
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"{where}.{unknown[0]}: no such entry; there are {', '.join(known)}")
        read = {}
        for name, value in values.items():
            default = known[name].default_factory
            if isinstance(default, type) and issubclass(default, _Section):
                read[name] = default.from_dict(value, f"{where}.{name}")
            else:
                read[name] = tuple(value) if isinstance(value, (list, tuple)) or _is_omegaconf_list(value) else value
                _check_kind(f"{where}.{name}", read[name], known[name].default)
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, for YAML and JSON."""
        assert is_dataclass(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in _plain(asdict(self)).items()}


def _is_omegaconf_list(value: Any) -> bool:
    return type(value).__name__ == "ListConfig"


def _check_kind(name: str, value: Any, default: Any) -> None:
    """That a value is of its default's kind, and a number one that can be."""
    least = 0 if name.endswith((".num_roles", ".taps", ".pose_blocks")) else 1

    def is_count(number: Any) -> bool:
        return type(number) is int and least <= number <= MOST

    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = is_count(value), f"a whole number from {least} to {MOST}"
    elif isinstance(default, float):
        may_lack = name.endswith(".layer_scale")
        fits, kind = (value is None and may_lack) or (type(value) in (int, float) and abs(value) <= MOST), "a number"
    elif isinstance(default, tuple):
        fits, kind = isinstance(value, tuple) and all(map(is_count, value)), f"whole numbers from {least} to {MOST}"
    else:
        fits, kind = isinstance(value, str), "a word"
    if not fits:
        shown = repr(value)
        raise InputError(f"{name}={shown if len(shown) <= 60 else shown[:57] + '...'}: give {kind}")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, dict) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise InputError(f"model config: {problem}")


@dataclass(frozen=True)
class EncoderConfig(_Section):
    """DINOv2, the first `depth` blocks of it."""

    dim: int = 1536
    num_heads: int = 24
    depth: int = 24
    ffn: str = "swiglu"  # or mlp
    ffn_dim: int = 4096
    pos_grid: int = 37  # the position embedding is a square of so many patches
    final_norm: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _check(self.ffn in FFN_KINDS, f"encoder.ffn={self.ffn!r}; give one of {', '.join(FFN_KINDS)}")
        _check(self.dim % self.num_heads == 0, f"encoder.dim={self.dim} is no multiple of num_heads={self.num_heads}")


@dataclass(frozen=True)
class MultiViewConfig(_Section):
    """The transformer over the tokens of all views; blocks alternate between all views and each view by itself."""

    dim: int = 1536
    num_heads: int = 24
    depth: int = 16
    ffn: str = "swiglu"
    ffn_dim: int = 4096
    layer_scale: float | None = 1e-5  # start value; None: no such factor
    taps: tuple[int, ...] = (7, 11)  # blocks whose output goes to the dense head, besides the last
    class_token: bool = True  # the encoder's class token of each view takes part
    reference_marker: bool = True  # view 0 is marked
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _check(self.ffn in FFN_KINDS, f"multiview.ffn={self.ffn!r}; give one of {', '.join(FFN_KINDS)}")
        _check(self.dim % self.num_heads == 0, f"multiview.dim={self.dim} is no multiple of num_heads={self.num_heads}")
        taps = tuple(self.taps)
        _check(
            len(taps) == 2 and 0 <= taps[0] < taps[1] < self.depth,
            f"multiview.taps={taps}: give two block numbers in order, below depth={self.depth}",
        )


@dataclass(frozen=True)
class GeometricInputsConfig(_Section):
    """Encoders of rays, depth and poses, and how often each input is offered to the network (docs/network.md §1.2).

    With the defaults (images only) none is, whatever the views hold. `infer` chooses by itself.
    """

    dense_dims: tuple[int, ...] = (588, 768, 1024)
    global_dims: tuple[int, ...] = (128, 256, 512)
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

    dpt_dim: int = 256
    dpt_layer_dims: tuple[int, ...] = (96, 192, 384, 768)
    pose_blocks: int = 2
    scale_dim: int = 196
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _check(len(self.dpt_layer_dims) == 4, f"heads.dpt_layer_dims={self.dpt_layer_dims}: give four widths")
        _check(self.dpt_dim % 2 == 0, f"heads.dpt_dim={self.dpt_dim} is odd; the regressor halves it")


@dataclass(frozen=True)
class VehicleIdConfig(_Section):
    """Embeddings of vehicle roles (docs/opv2v_vehicle_id_adaptation.md); `num_roles` 0 is off, as in the official networks."""

    num_roles: int = 0
    shuffle: bool = True  # in training, the numbers of the vehicles other than the main agent are drawn anew for each sample

    def __post_init__(self) -> None:
        _check(self.num_roles >= 0, f"vehicle_id.num_roles={self.num_roles}: give 0 (off) or the most vehicles of a scene")


@dataclass(frozen=True)
class ModelConfig(_Section):
    """A whole network. `ModelConfig()` is the official v1.1."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    multiview: MultiViewConfig = field(default_factory=MultiViewConfig)
    geometric_inputs: GeometricInputsConfig = field(default_factory=GeometricInputsConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    vehicle_id: VehicleIdConfig = field(default_factory=VehicleIdConfig)


V1_1 = ModelConfig()
V1 = ModelConfig(
    encoder=EncoderConfig(dim=1024, num_heads=16, ffn="mlp", final_norm=True),
    multiview=MultiViewConfig(
        dim=768, num_heads=12, depth=24, ffn="mlp", ffn_dim=3072, layer_scale=None, taps=(11, 17), class_token=False
    ),
)
# v1.1's kind in small, for tests and the demo; it starts from random weights, so its layer scale is no brake.
TINY = ModelConfig(
    encoder=EncoderConfig(dim=96, num_heads=3, depth=4, ffn_dim=256, pos_grid=16),
    multiview=MultiViewConfig(dim=96, num_heads=3, depth=4, ffn_dim=256, layer_scale=0.1, taps=(1, 2)),
    geometric_inputs=GeometricInputsConfig(dense_dims=(24, 32, 40), global_dims=(16, 24, 32)),
    heads=HeadsConfig(dpt_dim=32, dpt_layer_dims=(12, 16, 24, 40), pose_blocks=1, scale_dim=20),
)
ARCHITECTURES = {"mapanything": V1_1, "mapanything_v1": V1, "mapanything_tiny": TINY}
