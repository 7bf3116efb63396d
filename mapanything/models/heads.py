"""The heads: a dense one for every pixel, one for each view's pose, one for the scene's scale. All in float32.

The dense head follows DPT (Ranftl et al. 2021, arXiv:2103.13413). Its parameters have two names each in a checkpoint, and
the 3×3 convolutions behind the four inputs three: the modules are shared here in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.models.config import PATCH

NUM_DENSE = 6  # ray x, y, z, depth, confidence, mask
PIXELS_AT_ONCE = 1_200_000  # of the images that the dense head takes at a time: 4 of 518×518, 8 of 448×252
INT_MAX = 2**31 - 1  # many of CUDA's operators count a tensor's values in 32 bits


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); (R, C, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu_(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Adds a finer map to a coarser one and doubles the size."""

    def __init__(self, dim: int, two_inputs: bool) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit(dim) if two_inputs else None
        self.resConfUnit2 = ResidualUnit(dim)
        self.out_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        if self.resConfUnit1 is not None:
            assert finer is not None
            x = x + self.resConfUnit1(finer)
        x = self.resConfUnit2(x)
        # The reference doubles first. Both are linear and the doubling's weights add up to 1: a quarter of the work.
        return F.interpolate(self.out_conv(x), scale_factor=2, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """The second half of the DPT, under the name that checkpoints have for it."""

    def __init__(self, dim: int, layer_dims: Sequence[int]) -> None:
        super().__init__()
        for k, layer_dim in enumerate(layer_dims, 1):
            setattr(self, f"layer{k}_rn", nn.Conv2d(layer_dim, dim, 3, padding=1, bias=False))
        self.layer_rn = nn.ModuleList(getattr(self, f"layer{k}_rn") for k in range(1, 5))
        self.refinenet1 = FusionBlock(dim, two_inputs=True)
        self.refinenet2 = FusionBlock(dim, two_inputs=True)
        self.refinenet3 = FusionBlock(dim, two_inputs=True)
        self.refinenet4 = FusionBlock(dim, two_inputs=False)


class DPTFeatures(nn.Module):
    """Four maps (R, C_k, h, w) -> one of (R, dim, 8h, 8w)."""

    def __init__(self, in_dims: Sequence[int], dim: int, layer_dims: Sequence[int]) -> None:
        super().__init__()
        a, b, _, d = layer_dims
        self.scratch = Scratch(dim, layer_dims)
        resamplers = [
            [nn.ConvTranspose2d(a, a, 4, stride=4)],
            [nn.ConvTranspose2d(b, b, 2, stride=2)],
            [],
            [nn.Conv2d(d, d, 3, stride=2, padding=1)],
        ]
        self.input_process = nn.ModuleList(
            nn.Sequential(nn.Sequential(nn.Conv2d(in_dim, layer_dim, 1), *resampler), layer_rn)
            for in_dim, layer_dim, resampler, layer_rn in zip(
                in_dims, layer_dims, resamplers, self.scratch.layer_rn, strict=True
            )
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        h, w = maps[0].shape[-2:]
        x1, x2, x3, x4 = (process(x) for process, x in zip(self.input_process, maps, strict=True))
        x = self.scratch.refinenet4(x4)[..., :h, :w]  # of an odd number of rows, half rounds up
        x = self.scratch.refinenet3(x, x3)
        x = self.scratch.refinenet2(x, x2)
        return self.scratch.refinenet1(x, x1)


class DPTRegressor(nn.Module):
    """(R, dim, 8h, 8w) -> (R, NUM_DENSE, 14h, 14w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(dim // 2, dim // 2, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(dim // 2, NUM_DENSE, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        size = (x.shape[-2] // 8 * PATCH, x.shape[-1] // 8 * PATCH)
        return self.conv2(F.interpolate(x, size=size, mode="bilinear", align_corners=True))


class PoseBlock(nn.Module):
    """A residual of three 1×1 convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Conv2d(dim, dim, 1)
        self.res_conv2 = nn.Conv2d(dim, dim, 1)
        self.res_conv3 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.res_conv3(F.relu(self.res_conv2(F.relu(self.res_conv1(x))))))


class PoseHead(nn.Module):
    """(R, C, h, w) -> translations (R, 3) and quaternions (R, 4), neither scaled nor normalised yet."""

    def __init__(self, in_dim: int, num_blocks: int) -> None:
        super().__init__()
        dim = 4 * PATCH**2
        self.proj = nn.Conv2d(in_dim, dim, 1)
        self.res_conv = nn.ModuleList(PoseBlock(dim) for _ in range(num_blocks))
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.proj(x)
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean((2, 3)))
        return self.fc_t(x), self.fc_rot(x)


class ScaleHead(nn.Module):
    """The scale token (B, C) -> (B, 1), the logarithm of the scale."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for _ in range(2))
        self.output_proj = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        for layer in self.mlp:
            x = layer(x)
        return self.output_proj(x)


def as_map(tokens: Tensor, h: int, w: int) -> Tensor:
    """Patch features (R, h·w, C) -> (R, C, h, w) in float32, channels last in memory: no copy."""
    return tokens.float().reshape(len(tokens), h, w, -1).permute(0, 3, 1, 2)


def dense_bytes_per_view(height: int, width: int, dim: int) -> int:
    """Peak memory of the dense head for one view (float32, no gradients), from above.

    At its largest it holds three maps of 8/14 of the image's side with `dim` channels (the fused map before and after the
    last 1×1 convolution and the doubled one), or three of the full size with half as many.
    """
    pixels = height * width
    return 4 * max(3 * dim * pixels * 64 // 196, 3 * (dim // 2) * pixels) * 5 // 4


def rows_at_once(height: int, width: int, dim: int, free_bytes: int | None = None) -> int:
    """The number of views that the dense head takes at a time, the same however many there are.

    So memory does not grow with the views, and no map gets more values than CUDA's operators can count.

    Args:
        dim: the head's width.
        free_bytes: fewer views where these do not hold as many; one at least.

    Raises:
        InputError: one image is larger than torch's operators can count.
    """
    values = max(dim * height * width * 64 // 196, dim // 2 * height * width)  # of the largest map, for one view
    if values >= INT_MAX:
        raise InputError(f"images of {width}×{height} pixels are too large for the dense head; make them smaller")
    rows = min(PIXELS_AT_ONCE // (height * width), (INT_MAX - 1) // values)
    if free_bytes is not None:
        rows = min(rows, int(0.8 * free_bytes) // dense_bytes_per_view(height, width, dim))
    return max(1, rows)


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that the driver has left or torch has cached; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
