"""The multi-view transformer: blocks over the tokens of all views take turns with blocks over each view's own.

Nothing says which view is which but a marker on view 0. The scale token takes part in the blocks over all views only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mapanything.models.config import MultiViewConfig
from mapanything.models.layers import Block, LayerNorm, run


class MultiViewTransformer(nn.Module):
    """Alternating attention; `in_dim` is the encoder's width."""

    def __init__(self, config: MultiViewConfig, in_dim: int) -> None:
        super().__init__()
        self.checkpointing = config.gradient_checkpointing
        self.taps = config.taps
        self.proj_embed = nn.Identity() if in_dim == config.dim else nn.Linear(in_dim, config.dim)
        self.self_attention_blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, config.ffn, config.ffn_dim, config.layer_scale) for _ in range(config.depth)
        )
        self.norm = LayerNorm(config.dim)
        if config.reference_marker:
            # The sinusoid of position 0 (Vaswani et al. 2017): sines 0, cosines 1. A checkpoint brings its own.
            table = torch.tensor([0.0, 1.0]).repeat((config.dim + 1) // 2)[: config.dim]
            self.register_buffer("view_pos_table", table[None])
        else:
            self.view_pos_table = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor, class_tokens: Tensor | None, scale_token: Tensor) -> tuple[list[Tensor], Tensor]:
        """
        Args:
            patches: (B, V, N, C_in).
            class_tokens: (B, V, 1, C_in), or None where they take no part.
            scale_token: (C_in,), one for every sample.

        Returns:
            Patch features after the two taps and at the end, each (B·V, N, C), batch-major and normed;
            the scale token (B, C), normed.
        """
        b, v, num_patches, _ = patches.shape
        views = patches if class_tokens is None else torch.cat([patches, class_tokens], 2)
        n = views.shape[2]
        tokens = self.proj_embed(torch.cat([views.flatten(1, 2), scale_token.expand(b, 1, -1)], 1))
        if self.view_pos_table is not None:
            tokens = torch.cat([tokens[:, :n] + self.view_pos_table, tokens[:, n:]], 1)
        views, scale = tokens[:, :-1], tokens[:, -1:]
        features = []
        for i, block in enumerate(self.self_attention_blocks):
            if i % 2 == 0:
                tokens = torch.cat([views.reshape(b, v * n, -1), scale], 1)
                tokens = run(block, tokens, checkpointing=self.checkpointing)
                views, scale = tokens[:, :-1], tokens[:, -1:]
            else:
                views = run(block, views.reshape(b * v, n, -1), checkpointing=self.checkpointing)
            if i in self.taps or i == len(self.self_attention_blocks) - 1:
                features.append(self.norm(views.reshape(b * v, n, -1)[:, :num_patches]))
        return features, self.norm(scale[:, 0])
