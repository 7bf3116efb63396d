"""MapAnything (Keetha et al. 2025, arXiv:2509.13414): images, and what else is known of them, in; metric 3D out.

One page: encode the images, add what rays, depths and poses are given, let the views talk to each other, read off every
pixel, every pose and the scale. All views go through every step together. Weights: weights/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.models.config import PATCH, ModelConfig, architecture
from mapanything.models.encoder import ImageEncoder
from mapanything.models.geometric_inputs import GeometricFeatures
from mapanything.models.heads import (
    DPTFeatures,
    DPTRegressor,
    PoseHead,
    ScaleHead,
    as_map,
    free_bytes,
    rows_at_once,
)
from mapanything.models.inputs import check_views, prepare, stack_images
from mapanything.models.layers import LayerNorm, fast_kernels, fp32, keep_bf16, run
from mapanything.models.multiview import MultiViewTransformer
from mapanything.models.multiview_confidence import confidence
from mapanything.models.outputs import Outputs, assemble, pose_matrices
from mapanything.models.postprocess import Options, Prediction, align, predict
from mapanything.models.vehicle_id import VehicleId, gather_roles
from mapanything.models.weights.build import build_network
from mapanything.models.weights.identify import identify
from mapanything.models.weights.read import read_checkpoint
from mapanything.models.weights.save import save_pretrained

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPTIONS = tuple(f.name for f in fields(Options))


class MapAnything(GeometricFeatures):
    """The network of a config; without one v1.1's. `architecture(NAME)` gives those of configs/model."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        config = config or architecture("mapanything")
        dim, heads = config.encoder.dim, config.heads
        super().__init__(config.geometric_inputs, dim)
        self.config = config
        self.encoder = ImageEncoder(config.encoder)
        self.fusion_norm_layer = LayerNorm(dim)
        self.vehicle_id = VehicleId(config.vehicle_id, dim) if config.vehicle_id.num_roles else None
        self.scale_token = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.scale_token, std=0.02)
        self.info_sharing = MultiViewTransformer(config.multiview, dim)
        in_dims = (dim, config.multiview.dim, config.multiview.dim, config.multiview.dim)
        self.dpt_feature_head = DPTFeatures(in_dims, heads.dpt_dim, heads.dpt_layer_dims)
        self.dpt_regressor_head = DPTRegressor(heads.dpt_dim)
        self.dense_head = nn.Sequential(self.dpt_feature_head, self.dpt_regressor_head)
        self.pose_head = PoseHead(config.multiview.dim, heads.pose_blocks)
        self.scale_head = ScaleHead(config.multiview.dim, heads.scale_dim)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, overrides: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """The network of a `.pth`, a safetensors file or a folder with config.json, in eval mode.

        Args:
            path: see `read_checkpoint`. overrides: see `identify`. device: where the weights go.

        Raises:
            InputError: what cannot be read, is no network that we know, or does not fit.
        """
        checkpoint = read_checkpoint(Path(path))
        config = identify(checkpoint, overrides)
        return build_network(cls, config, checkpoint, device)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes a folder that `from_pretrained` and upstream can read; see weights/save.py."""
        save_pretrained(self, self.config, Path(folder))

    def forward(self, views: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Per-view outputs for per-view inputs (docs/network.md §1.1, §5); geometric ones as the config's nine numbers say.

        Args:
            views: dictionaries with img (B, 3, H, W) and data_norm_type, and optionally ray_directions_cam (B, H, W, 3),
                depth_along_ray (B, H, W, 1), camera_pose_quats (B, 4) with camera_pose_trans (B, 3), is_metric_scale (B,),
                agent_id (B,).

        Returns:
            A dictionary per view: `Outputs` without its V axis.

        Raises:
            InputError: what cannot be stacked; the view and the key are named.
        """
        return self.stacked(views).views()

    def stacked(
        self, views: Sequence[Mapping[str, Any]], num_rows: int | None = None, config: ModelConfig | None = None
    ) -> Outputs:
        """Does what `forward` does, with the views stacked.

        Args:
            num_rows: how many views the dense head takes at a time; None: see `heads.rows_at_once`.
            config: whose geometric_inputs to go by; None: the network's own.
        """
        config = config or self.config
        images = stack_images(views)
        b, v, _, height, width = images.shape
        h, w = height // PATCH, width // PATCH
        patches, class_tokens = self.encoder(images.flatten(0, 1))  # (B·V, N, C), (B·V, 1, C)
        with fp32(images.device):
            fused = patches.float().unflatten(0, (b, v))
            for feature in self.geometric_features(views, config.geometric_inputs):
                fused = fused + feature
            fused = self.fusion_norm_layer(fused)  # (B, V, N, C)
        tokens = fused
        if self.vehicle_id is not None:
            roles = gather_roles(views, len(self.vehicle_id.embedding), images.device)
            tokens = fused if roles is None else fused + self.vehicle_id(roles)
        features, scale = self.info_sharing(
            tokens,
            class_tokens.unflatten(0, (b, v)) if self.config.multiview.class_token else None,
            self.scale_token,
        )
        with fp32(images.device):
            maps = [as_map(x, h, w) for x in (fused.flatten(0, 1), *features)]
            dense = self._dense(maps, num_rows or rows_at_once(height, width, self.config.heads.dpt_dim))
            trans, quats = self.pose_head(maps[-1])
            return assemble(dense, trans, quats, self.scale_head(scale.float()), v)

    def _dense(self, maps: list[Tensor], num_rows: int) -> Tensor:
        """The dense head over (B·V, C, h, w), `num_rows` views at a time."""
        checkpointing = self.config.heads.gradient_checkpointing and torch.is_grad_enabled()
        num_rows = 1 if checkpointing else num_rows  # what checkpointing saves is needed again, for as many as a part has
        parts = zip(*(x.split(num_rows) for x in maps), strict=True)
        dense = [run(lambda *x: self.dense_head(x), *part, checkpointing=checkpointing) for part in parts]
        return dense[0] if len(dense) == 1 else torch.cat(dense)

    def keep_bf16(self) -> Self:
        """Makes this network one for inference in bf16 alone: same results, a quarter less memory, faster with few views."""
        keep_bf16(self.encoder, self.info_sharing)
        return self

    def infer(
        self, views: Sequence[Mapping[str, Any]], *, keep_unmasked: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        """Gives what upstream's gives: per-view dictionaries, masked; see `predict` for the arguments.

        Args:
            keep_unmasked: points and depths also as they were before the mask, under `{key}_unmasked`.
        """
        return self.predict(views, **options).masked_views(keep_unmasked)

    @torch.inference_mode()
    def predict(
        self,
        views: Sequence[Mapping[str, Any]],
        memory_efficient_inference: bool = True,
        minibatch_size: int | None = None,
        use_amp: bool = True,
        amp_dtype: str = "bf16",
        ignore_calibration_inputs: bool = False,
        ignore_depth_inputs: bool = False,
        ignore_pose_inputs: bool = False,
        ignore_depth_scale_inputs: bool = False,
        ignore_pose_scale_inputs: bool = False,
        align_to_inputs: bool = False,
        **options: Any,
    ) -> Prediction:
        """The scene that a batch of views shows. The network's state, its config and the random state stay as they are.

        Args:
            views: dictionaries with img (B, 3, H, W) and data_norm_type, and optionally intrinsics (B, 3, 3) or
                ray_directions (B, H, W, 3), depth_z (B, H, W[, 1]), camera_poses ((B, 4, 4) or quaternions and
                translations), is_metric_scale (bool or (B,)), agent_id (B,). What is given is used, unless ignored.
            memory_efficient_inference: the dense head takes no more views at once than memory is free for.
            minibatch_size: how many it takes then; None: as `heads.rows_at_once` says, fewer where memory is short, and
                one on a CPU, where it is as fast as many.
            use_amp, amp_dtype: bf16, fp16 or fp32 for encoder and transformer; the heads compute in float32.
            align_to_inputs: the result is moved, turned and scaled as a whole to fit the given poses.
            **options: `postprocess.Options`.

        Raises:
            InputError: see docs/network.md §6.1; the view and the key are named.
        """
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise TypeError(f"predict() got an unexpected keyword argument {unknown[0]!r}")
        if amp_dtype not in AMP_DTYPES:
            raise InputError(f"amp_dtype={amp_dtype!r}; give one of {', '.join(AMP_DTYPES)}")
        if minibatch_size is not None and minibatch_size < 1:
            raise InputError(f"minibatch_size={minibatch_size}; give a number of views from 1 up, or None")
        dtype = AMP_DTYPES[amp_dtype] if use_amp else torch.float32
        kept = self.encoder.model.patch_embed.proj.weight.dtype
        if kept != torch.float32 and kept != dtype:
            raise InputError("these weights were turned into bf16 (keep_bf16): give amp_dtype=bf16, or load them again")
        check_views(views)
        device = self.scale_token.device
        prepared = prepare(views, device)
        seen = replace(
            self.config.geometric_inputs,
            overall_prob=float(not (ignore_calibration_inputs and ignore_depth_inputs and ignore_pose_inputs)),
            dropout_prob=0.0,
            ray_dirs_prob=float(not ignore_calibration_inputs),
            depth_prob=float(not ignore_depth_inputs),
            cam_prob=float(not ignore_pose_inputs),
            sparse_depth_prob=0.0,
            depth_scale_norm_all_prob=float(ignore_depth_scale_inputs),
            pose_scale_norm_all_prob=float(ignore_pose_scale_inputs),
        )
        exact = dtype == torch.float32
        with torch.autocast(device.type, dtype, enabled=not exact), fast_kernels(device, exact):
            outputs = self.stacked(
                prepared,
                self._rows_at_once(views, minibatch_size) if memory_efficient_inference else None,
                replace(self.config, geometric_inputs=seen),
            )
        images = stack_images(prepared)
        prediction = predict(outputs, images, Options(**options), confidence)
        if align_to_inputs:
            prediction = self._aligned(prediction, prepared)
        return prediction

    def _rows_at_once(self, views: Sequence[Mapping[str, Any]], minibatch_size: int | None) -> int:
        if minibatch_size is not None:
            return minibatch_size
        free = free_bytes(self.scale_token.device)
        height, width = views[0]["img"].shape[2:]
        return 1 if free is None else rows_at_once(height, width, self.config.heads.dpt_dim, free)

    @staticmethod
    def _aligned(prediction: Prediction, prepared: Sequence[dict[str, Any]]) -> Prediction:
        given = torch.tensor(["camera_pose_quats" in view for view in prepared])
        if not given.any():
            raise InputError("align_to_inputs: no view has camera_poses to align to")
        first = prepared[int(given.nonzero()[0])]
        quats, trans = (
            torch.stack([view.get(key, first[key]) for view in prepared], 1)
            for key in ("camera_pose_quats", "camera_pose_trans")
        )
        return align(prediction, pose_matrices(trans, quats), given)
