"""The image encoder: DINOv2's first blocks (Oquab et al. 2023, arXiv:2304.07193), one call for all views.

v1.1 keeps 24 of ViT-g's 40 blocks and no final norm; v1 is the whole ViT-L. No registers, no mask token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapanything.models.config import PATCH, EncoderConfig
from mapanything.models.layers import Block, LayerNorm, fp32, run


class PatchEmbed(nn.Module):
    """(R, 3, H, W) -> (R, N, C), one token per patch, row by row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """A vision transformer with DINOv2's parameter names; (R, 3, H, W) -> tokens (R, 1 + N, C), the class token first."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.grid = config.pos_grid
        self.checkpointing = config.gradient_checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.pos_grid**2, config.dim))
        self.patch_embed = PatchEmbed(config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, config.ffn, config.ffn_dim, layer_scale=1.0) for _ in range(config.depth)
        )
        if config.final_norm:
            self.norm = LayerNorm(config.dim)
        else:
            self.norm = nn.Identity()
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, h: int, w: int) -> Tensor:
        """The position embedding for h × w patches: (1, 1 + h·w, C).

        Resized by the factor (h + 0.1) / grid, which moves the sampling grid a little against a resize to the size h, w:
        DINOv2 was trained and released so, and its weights expect it.
        """
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        first, grid = self.pos_embed[:, :1], self.pos_embed[0, 1:]
        with fp32(grid.device):
            rows, columns = (resizing(self.grid, size, grid.device) for size in (h, w))
            grid = (rows @ grid.float().view(self.grid, -1)).view(h, self.grid, -1)
            grid = (columns @ grid).flatten(0, 1)[None]
        return torch.cat([first, grid.to(first.dtype)], 1)

    def forward(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions(h, w)
        for block in self.blocks:
            x = run(block, x, checkpointing=self.checkpointing)
        return self.norm(x)


def resizing(grid: int, size: int, device: torch.device) -> Tensor:
    """The matrix (size, grid) of a bicubic resize along one axis, by the factor (size + 0.1) / grid.

    As a product with two such matrices, a resize has a fast and repeatable backward pass; that of CUDA's own has neither.
    """
    unit = torch.eye(grid, device=device)[None, :, :, None]  # (1, channel, place, 1)
    factor = ((size + 0.1) / grid, 1.0)
    return F.interpolate(unit, scale_factor=factor, mode="bicubic", align_corners=False, antialias=False)[0, :, :, 0].T


class ImageEncoder(nn.Module):
    """Images (R, 3, H, W) -> patch features (R, N, C) and class tokens (R, 1, C)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.model = DinoV2(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model(images)
        return tokens[:, 1:], tokens[:, :1]
